"""Export a run's checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from dct_vl.export.adapter import export_adapter
from dct_vl.export.card import write_card
from dct_vl.export.check import max_abs_logit_diff
from dct_vl.export.folder import check_place, whole_folder, write_json
from dct_vl.export.model import ExportOptions, export_module
from dct_vl.export.outside import Outside, ask_outside
from dct_vl.export.plain import why_not_plain
from dct_vl.export.tensors import ExportError
from dct_vl.inference.loading import find_checkpoint, load_checkpoint
from dct_vl.inputs.held_out import read_split
from dct_vl.runs.config.tuning import trained_parts
from dct_vl.runs.result_files import EXPORT_NAME, outside_answers
from dct_vl.runs.run_files import read_config

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


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
    check_place(out)
    model = load_checkpoint(path, dtype=stored, merge=False)
    with whole_folder(out) as unfinished:
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
    check_place(out)
    if check or outside:
        _check_samples(read_config(run_folder).data.path)
    stored = checkpoint_dtype(checkpoint)
    written = dtype or stored
    # adapters are merged in the wider of the two, and rounded once when they are written
    model = load_checkpoint(path, dtype=torch.promote_types(stored, written))
    base = model.run.model.path
    options = ExportOptions(dtype=written)
    num_bytes = export_module(
        model.module,
        model.visual,
        base,
        out,
        options,
        add_files=lambda folder: write_card(
            folder, model.run, run_folder, checkpoint, model.visual
        ),
    )
    difference = None
    if check:
        samples = read_split(model.run.data.path, "val", check, on_fault=lambda key, error: None)
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


def _check_samples(data: str) -> None:
    """Refuse before a model is loaded and written what could not be asked about afterwards."""
    wanted = "--check and --outside ask about the run's validation samples"
    if not data:
        raise ExportError(f"{wanted}, and the run has no data, as after an import: leave them out")
    try:
        next(read_split(data, "val", 1, on_fault=lambda key, error: None), None)
    except (ValueError, OSError) as error:
        raise ExportError(
            f"{wanted}, and {data} cannot be read ({error}): leave them out, or put the data there"
        ) from error
