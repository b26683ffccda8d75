"""Import a Hugging Face folder as a NeMo checkpoint that every verb takes like a run's."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedTensor,
    apply_factories,
)
from omegaconf import OmegaConf

from dct_vl.export.folder import atomic_folder, check_new
from dct_vl.inference.loading import start_single_process
from dct_vl.model.families.qwen_vl.megatron_config import ModelOptions, model_config
from dct_vl.model.families.qwen_vl.model import QwenVLWithVisualTokenizer
from dct_vl.model.families.qwen_vl.weights import load_hf_weights
from dct_vl.runs.checkpoint_files import META_NAME, list_files
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.of_folder import run_of_folder

#: NeMo saves the module below its Lightning wrapper
_PREFIX = "module."


def import_folder(folder: str | Path, out: str | Path, *, tokenizer: str = "pixel") -> Path:
    """Write a run's folder with one checkpoint, step 0, and no optimizer state.

    The weights are read tensor by tensor into the model, which is the one copy in memory, and
    keep the dtype of the folder.

    Args:
        folder: a Hugging Face folder of Qwen2-VL or Qwen2.5-VL, sharded or not.
        out: a new or empty folder.
        tokenizer: preset whose front end starts from the folder's patch embedding.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: `out` holds something, or the folder is no whole model; lists what is wrong.
    """
    folder, out = Path(folder).resolve(), Path(out)
    check_new(out)
    run = run_of_folder(folder, tokenizer)
    start_single_process()
    module = _empty_module(run)
    load_hf_weights(module, folder)
    checkpoint = Path("checkpoints") / "step-00000000"
    with atomic_folder(out) as unfinished:
        weights = unfinished / checkpoint / "weights"
        weights.mkdir(parents=True)
        dist_checkpointing.save(_writable_state(module), str(weights))
        meta = {
            "step": 0,
            "tokenizer": run.tokenizer,
            "imported_from": str(folder),
            "files": list_files(unfinished / checkpoint),
        }
        (unfinished / checkpoint / META_NAME).write_text(json.dumps(meta, indent=2))
        (unfinished / "config.yaml").write_text(OmegaConf.to_yaml(asdict(run)))
    return out / checkpoint


def _writable_state(module: QwenVLWithVisualTokenizer) -> dict[str, Any]:
    """What is saved, each piece in memory of its own; the module cannot be used afterwards.

    The halves of gated projections are views, which Megatron's writer copies, all of them before
    it writes the first: a third of the model. Here the whole goes as soon as its halves are there.
    """
    state = module.sharded_state_dict(prefix=_PREFIX)
    apply_factories(state)
    wholes = {p.untyped_storage().data_ptr(): p for p in module.parameters()}
    views: dict[int, list[ShardedTensor]] = {}
    for piece in nested_values(state):
        if isinstance(piece, ShardedTensor):
            storage = piece.data.untyped_storage()
            if storage.nbytes() != piece.data.nbytes:
                views.setdefault(storage.data_ptr(), []).append(piece)
    for address, pieces in views.items():
        for piece in pieces:
            piece.data = piece.data.clone()
        wholes[address].data = wholes[address].data.new_empty(0)
    return state


def _empty_module(run: RunConfig) -> QwenVLWithVisualTokenizer:
    """The model with memory that nothing has been written to."""
    options = ModelOptions(
        layer_spec="local",
        dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[run.model.dtype],
        seq_length=run.data.seq_length,
        tokenizer=run.tokenizer,
        draws_weights=False,
    )
    return model_config(run.model.path, options).configure_model(None)
