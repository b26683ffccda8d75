"""Export a module, or a run's checkpoint, as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from dct_tokenizer import VisualTokenizer
from dct_vl.export.adapter import export_adapter
from dct_vl.export.bundled import (
    bundled_model_settings,
    bundled_processor_settings,
    cell_embedding,
    write_code,
)
from dct_vl.export.check import Outside, ask_outside, max_abs_logit_diff
from dct_vl.export.folder import (
    atomic_folder,
    check_new,
    copy_text_files,
    model_settings,
    processor_settings,
    write_card,
    write_json,
)
from dct_vl.export.tensors import (
    MAX_SHARD_BYTES,
    ExportError,
    folded_patch_embed,
    megatron_groups,
    stock_shapes,
    why_not_plain,
    write_tensors,
)
from dct_vl.inference.loading import find_checkpoint, load_checkpoint
from dct_vl.inputs.shard_reader import read_split
from dct_vl.model.families.qwen_vl.model import QwenVLWithVisualTokenizer
from dct_vl.model.families.qwen_vl.weights import PATCH_EMBED
from dct_vl.model.lora import merge_lora
from dct_vl.runs.config.schema import DataConfig
from dct_vl.runs.config.tuning import trained_parts
from dct_vl.runs.result_files import EXPORT_NAME, outside_answers
from dct_vl.runs.run_files import read_config


def export_module(
    module: QwenVLWithVisualTokenizer,
    visual: VisualTokenizer,
    base: str | Path,
    out: str | Path,
    *,
    dtype: torch.dtype,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    add_files: Callable[[Path], None] = lambda folder: None,
) -> int:
    """Write a folder that transformers loads without this project.

    Where the tokenizer folds into the stock patch embedding it is a plain Qwen2-VL or Qwen2.5-VL;
    otherwise it brings the tokenizer's code along, for `trust_remote_code=True`. The folder is
    written atomically: under another name beside it, and renamed once it is complete.

    Args:
        module: a whole model on any device; adapters are merged into it.
        visual: its tokenizer, with the pixel bounds to write.
        base: the Hugging Face folder that the run started from.
        out: a new or empty folder.
        add_files: writes what else belongs into the folder, before that has its name.

    Returns:
        Bytes of the weights.

    Raises:
        ExportError: `out` holds something, or the module does not fit the base folder's
            config.json.
    """
    base = Path(base)
    with atomic_folder(out) as unfinished:
        copy_text_files(base, unfinished)
        merge_lora(module)
        stock = stock_shapes(base)
        groups = list(megatron_groups(module, stock, dtype))
        reason = why_not_plain(visual)
        if reason is None:
            settings = model_settings(base, dtype)
            processor = processor_settings(base, visual)
            front_end = [folded_patch_embed(module.vision_model.front_end, dtype)]
        else:
            write_code(unfinished)
            settings = bundled_model_settings(base, dtype, visual)
            processor = bundled_processor_settings(base, visual)
            front_end = cell_embedding(module.vision_model.front_end, dtype)
        write_json(unfinished / "config.json", settings)
        write_json(unfinished / "preprocessor_config.json", processor)
        expected = {name: shape for name, shape in stock.items() if name != PATCH_EMBED}
        for group in front_end:
            expected.update(group.shapes)
        groups += front_end
        num_bytes = write_tensors(unfinished, groups, expected, max_shard_bytes=max_shard_bytes)
        add_files(unfinished)
    return num_bytes


def checkpoint_dtype(checkpoint: str | Path) -> torch.dtype:
    """Dtype of a checkpoint's weights (not of the optimizer's copies), from its metadata."""
    metadata = FileSystemReader(str(Path(checkpoint) / "weights")).read_metadata()
    for name, entry in metadata.state_dict_metadata.items():
        is_words = name.startswith("module.") and name.endswith("word_embeddings.weight")
        if is_words and isinstance(entry, TensorStorageMetadata):
            return entry.properties.dtype
    raise ExportError(
        f"{checkpoint} holds no word embeddings: not a checkpoint of a language model"
    )


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written; also `EXPORT_NAME` in the folder."""

    step: int
    dtype: str
    num_bytes: int
    #: loads without `trust_remote_code`
    is_plain: bool
    #: against the trainer's model, after a reload in transformers; None where it was not asked for
    max_abs_logit_diff: float | None
    #: asked in a process that cannot import this project; None where it was not
    outside: Outside | None


def export_adapters(path: str | Path, out: str | Path, dtype: torch.dtype | None = None) -> int:
    """Write a LoRA run's adapters, and what it trained in full beside them, as a PEFT folder.

    Args:
        path: a run's folder or one of its checkpoints.
        out: a new or empty folder.
        dtype: of the tensors; the checkpoint's own by default.

    Returns:
        Bytes of the tensors.

    Raises:
        ValueError: no checkpoint there; or see `export_adapter`.
    """
    _, checkpoint = find_checkpoint(path)
    stored = checkpoint_dtype(checkpoint)
    check_new(out)
    model = load_checkpoint(path, dtype=stored, merge=False)
    with atomic_folder(out) as unfinished:
        return export_adapter(
            model.module,
            model.visual,
            model.run.model.path,
            unfinished,
            trained=trained_parts(model.run.model),
            dtype=dtype or stored,
        )


def export_checkpoint(
    path: str | Path,
    out: str | Path,
    dtype: torch.dtype | None = None,
    *,
    check: int = 0,
    outside: int = 0,
) -> Exported:
    """Write a run's newest checkpoint, or the given one, as a Hugging Face folder.

    LoRA's adapters are merged into the weights.

    Args:
        path: a run's folder or one of its checkpoints, trained in any parallel layout.
        out: a new or empty folder.
        dtype: of the written weights; the checkpoint's own by default.
        check: reload the folder and compare the logits of so many validation samples.
        outside: ask the folder about so many of them in a process that cannot import this project;
            the answers go to `outside_answers(out)`.

    Raises:
        ValueError: no checkpoint there, or no samples to ask about; or see `export_module`.
    """
    run_folder, checkpoint = find_checkpoint(path)
    check_new(out)
    if check or outside:
        _check_samples(read_config(run_folder).data)
    stored = checkpoint_dtype(checkpoint)
    written = dtype or stored
    # adapters are merged in the wider of the two, and rounded once when they are written
    model = load_checkpoint(path, dtype=torch.promote_types(stored, written))
    base = model.run.model.path
    num_bytes = export_module(
        model.module,
        model.visual,
        base,
        out,
        dtype=written,
        add_files=lambda folder: write_card(
            folder, model.run, run_folder, checkpoint, model.visual
        ),
    )
    difference = None
    if check:
        samples = read_split(
            model.run.data.path_of("val"), "val", check, on_fault=lambda key, error: None
        )
        difference = max_abs_logit_diff(model, out, samples)
    asked = None
    if outside:
        asked = ask_outside(model, Path(out), outside_answers(out), num_samples=outside)
    exported = Exported(
        step=model.step,
        dtype=str(written).removeprefix("torch."),
        num_bytes=num_bytes,
        is_plain=why_not_plain(model.visual) is None,
        max_abs_logit_diff=difference,
        outside=asked,
    )
    write_json(Path(out) / EXPORT_NAME, asdict(exported))
    return exported


def _check_samples(data: DataConfig) -> None:
    """Refuse before a model is loaded and written what could not be asked about afterwards."""
    wanted = "--check and --outside ask about the run's validation samples"
    if not data.path:
        raise ExportError(f"{wanted}, and the run has no data, as after an import: leave them out")
    try:
        next(read_split(data.path_of("val"), "val", 1, on_fault=lambda key, error: None), None)
    except (ValueError, OSError) as error:
        raise ExportError(
            f"{wanted}, and {data.path} cannot be read ({error}): leave them out, or put the data "
            "there"
        ) from error
