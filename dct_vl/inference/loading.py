"""Load a training checkpoint of any parallel layout into one process, or into another layout."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from dct_vl.compat import activate

activate()

from megatron.core import dist_checkpointing, parallel_state  # noqa: E402
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed  # noqa: E402

from dct_tokenizer import VisualTokenizer  # noqa: E402
from dct_vl.inputs.batch import Batch  # noqa: E402
from dct_vl.inputs.chat import ChatTokenizer, read_chat_tokenizer  # noqa: E402
from dct_vl.inputs.clips import VideoRules  # noqa: E402
from dct_vl.inputs.encode import InputSpec  # noqa: E402
from dct_vl.model.attention import have_cudnn_attention, prefer_cudnn  # noqa: E402
from dct_vl.model.families.qwen_vl.config import read_hf_config, vision_sizes  # noqa: E402
from dct_vl.model.families.qwen_vl.megatron_config import ModelOptions, model_config  # noqa: E402
from dct_vl.model.families.qwen_vl.model import QwenVLWithVisualTokenizer  # noqa: E402
from dct_vl.model.families.qwen_vl.weights import load_hf_weights  # noqa: E402
from dct_vl.model.fused.pieces import allow_compiling  # noqa: E402
from dct_vl.model.layer_specs import resolve_layer_spec  # noqa: E402
from dct_vl.model.lora import apply_lora, merge_lora  # noqa: E402
from dct_vl.runs.checkpoint_files import find_fault, list_checkpoints, newest_checkpoint, read_meta  # noqa: E402
from dct_vl.runs.config.schema import RunConfig  # noqa: E402
from dct_vl.runs.derived import RunSettings  # noqa: E402
from dct_vl.runs.of_folder import run_of_folder  # noqa: E402
from dct_vl.runs.run_files import read_config  # noqa: E402

_PREFIX = "module."


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to answer, with what it needs to read images and text."""

    run: RunConfig
    #: folder that the weights were read from
    checkpoint: Path
    step: int
    #: this process's part, where the model is divided over several
    module: QwenVLWithVisualTokenizer
    visual: VisualTokenizer
    chat: ChatTokenizer

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def on_device(self, batch: Batch) -> Batch:
        """The batch where the model is; windows are found on the host, which avoids a sync."""
        side = self.module.config.vision_transformer_config.window_side
        return batch.with_windows(side).to(self.device)

    @cached_property
    def inputs(self) -> InputSpec:
        """How conversations become this model's inputs, the same as in its training."""
        return InputSpec(
            chat=self.chat,
            visual=self.visual,
            seq_length=self.run.data.seq_length,
            video=RunSettings(self.run).video_rules,
            ids_per_second=vision_sizes(read_hf_config(self.run.model.path)).ids_per_second,
        )

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the tokenizer's end mark and those of the model's folder."""
        found = [self.chat.tokenizer.eos_token_id]
        file = Path(self.chat.tokenizer.name_or_path) / "generation_config.json"
        if file.is_file():
            listed = json.loads(file.read_text()).get("eos_token_id", [])
            found += listed if isinstance(listed, list) else [listed]
        return frozenset(found)

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, without special ones."""
        return self.chat.tokenizer.decode(list(tokens), skip_special_tokens=True)


def find_checkpoint(path: str | Path) -> tuple[Path, Path]:
    """(run's folder, checkpoint's folder) of a run or of one of its checkpoints.

    Raises:
        ValueError: neither a run with a checkpoint nor a checkpoint, or one whose files are not
            as they were written. Training resumes from the one before; answers of
            other weights than were asked for would mislead.
    """
    path = Path(path)
    if (path / "weights").is_dir():
        run_folder, checkpoint = path.parent.parent, path
    elif newest := newest_checkpoint(path):
        run_folder, checkpoint = path, newest
    else:
        raise ValueError(
            f"{path} is neither a checkpoint (step-…) nor a run's folder with one: expected "
            "LOG_DIR/EXPERIMENT_NAME or LOG_DIR/EXPERIMENT_NAME/checkpoints/step-…"
        )
    if fault := find_fault(checkpoint):
        others = [str(one) for one in list_checkpoints(run_folder) if one.name != checkpoint.name]
        raise ValueError(
            f"{checkpoint} is damaged: {fault}; "
            + (f"name another one: {', '.join(others)}" if others else "the run has no other one")
        )
    return run_folder, checkpoint


def start_single_process() -> None:
    """Megatron's parallel state for one process; does nothing where it is there already."""
    if parallel_state.is_initialized():
        return
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)


def load_checkpoint(
    path: str | Path,
    *,
    merge: bool = True,
    dtype: torch.dtype | None = None,
    compiles: bool = False,
) -> LoadedModel:
    """Build the model of a run and fill it from its checkpoint, re-sharded to Megatron's groups.

    Without such groups they are made for one process, which then holds the whole model.

    Args:
        path: a run's folder or a checkpoint.
        merge: add LoRA's adapters to the weights, so that the module is that of a run without
            LoRA; otherwise, and over tensor-parallel ranks, they stay beside them.
        dtype: of the parameters; bf16 on CUDA and fp32 on the CPU by default.
        compiles: make kernels for it on CUDA, which takes 15 seconds and pays after some thousands
            of answers.

    Raises:
        ValueError: no checkpoint, or one that does not fit the run's model.
    """
    run_folder, checkpoint = find_checkpoint(path)
    run = read_config(run_folder)
    module = _empty_module(run, dtype, compiles=compiles)
    if run.model.tuning == "lora":
        apply_lora(module, run.model.lora)
    # NeMo saves the module below its Lightning wrapper, hence the prefix; what Lightning keeps
    # beside the tensors comes along and is left out
    state = module.sharded_state_dict(prefix=_PREFIX)
    loaded = dist_checkpointing.load(state, str(checkpoint / "weights"))
    module.load_state_dict(
        {name.removeprefix(_PREFIX): v for name, v in loaded.items() if name.startswith(_PREFIX)}
    )
    if merge and parallel_state.get_tensor_model_parallel_world_size() == 1:
        merge_lora(module)
    return _loaded(run, checkpoint, read_meta(checkpoint)["step"], module, dtype)


def load_folder(
    folder: str | Path, *, dtype: torch.dtype | None = None, compiles: bool = False
) -> LoadedModel:
    """The model of a Hugging Face folder, its weights read straight into this rank's part.

    Args:
        folder: of Qwen2-VL or Qwen2.5-VL, as on the hub or as this project exports it.
        dtype, compiles: see `load_checkpoint`.

    Raises:
        ValueError: the folder is no whole model; lists what is wrong.
    """
    model = _model_of_folder(folder, "pixel", dtype, compiles=compiles)
    load_hf_weights(model.module, model.checkpoint)
    return model


def random_model(
    folder: str | Path, *, tokenizer: str = "pixel", compiles: bool = False
) -> LoadedModel:
    """The model of a folder that needs no weights, with random ones and any tokenizer."""
    return _model_of_folder(folder, tokenizer, None, compiles=compiles, draws_weights=True)


def _model_of_folder(
    folder: str | Path, tokenizer: str, dtype: torch.dtype | None, **options: bool
) -> LoadedModel:
    folder = Path(folder).resolve()
    run = run_of_folder(folder, tokenizer)
    # as long as the model can see, not as a run would train it
    longest = read_hf_config(folder).max_position_embeddings
    total = VideoRules.total_pixels
    data = replace(run.data, seq_length=longest, video_total_pixels=total)
    run = replace(run, data=data)
    return _loaded(run, folder, 0, _empty_module(run, dtype, **options), dtype)


def _empty_module(
    run: RunConfig, dtype: torch.dtype | None, *, compiles: bool, draws_weights: bool = False
) -> QwenVLWithVisualTokenizer:
    """The run's model in Megatron's groups, which are made for one process where there are none."""
    start_single_process()
    allow_compiling(compiles)
    layer_spec = resolve_layer_spec(run.model.layer_spec)
    on_cuda = torch.cuda.is_available()
    dtype = dtype or _default_dtype()
    if on_cuda:
        prefer_cudnn(have_cudnn_attention())
    options = ModelOptions(
        layer_spec=layer_spec,
        # in fp32 an answer is compared with what Megatron's own layers say
        fused_layers=on_cuda and layer_spec == "local" and dtype != torch.float32,
        dtype=dtype,
        seq_length=run.data.seq_length,
        tokenizer=run.tokenizer,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
        draws_weights=draws_weights,
    )
    return model_config(run.model.path, options).configure_model(None)


def _default_dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def _loaded(
    run: RunConfig,
    folder: Path,
    step: int,
    module: QwenVLWithVisualTokenizer,
    dtype: torch.dtype | None,
) -> LoadedModel:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return LoadedModel(
        run=run,
        checkpoint=folder,
        step=step,
        module=module.to(device=device, dtype=dtype or _default_dtype()).eval(),
        visual=RunSettings(run).visual,
        chat=read_chat_tokenizer(run.model.path),
    )


def with_data_path(model: LoadedModel, path: str) -> LoadedModel:
    """The same model, reading its samples from another folder."""
    return replace(model, run=replace(model.run, data=replace(model.run.data, path=path)))
