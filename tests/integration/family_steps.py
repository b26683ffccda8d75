"""Run under torchrun with two processes: train each tokenizer family a few steps in each layout.

usage: python -m torch.distributed.run --nproc-per-node=2 family_steps.py FOLDER FOLDER_25 OUT.json

FOLDER is of a Qwen2-VL, FOLDER_25 of a Qwen2.5-VL. The same two micro batches a step in every
layout, from the same folder: one process (both ranks do the same), two tensor-parallel ranks
without and with sequence parallelism, two pipeline stages. All of it in one start, on NeMo's model,
Megatron's schedules and its optimizer; OUT.json holds {case: {layout: {"losses": [...], "norms":
[...], "wrong": [...]}}}, the last the tensors that changed although they are frozen, or did not
although they are trained.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dct_vl.compat import activate

activate()

from megatron.core import parallel_state  # noqa: E402
from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from dct_tokenizer import build_tokenizer  # noqa: E402
from dct_tokenizer.registry import preset_config  # noqa: E402
from dct_vl.inputs.chat import ChatTokenizer  # noqa: E402
from dct_vl.inputs.encode import InputSpec  # noqa: E402
from dct_vl.inputs.rejects import RejectLog  # noqa: E402
from dct_vl.model.families.qwen_vl.megatron_config import ModelOptions, model_config  # noqa: E402
from dct_vl.model.parts import LoraConfig  # noqa: E402
from dct_vl.runs.config.schema import ModelConfig  # noqa: E402
from dct_vl.runs.config.tuning import trained_parts  # noqa: E402
from dct_vl.training.data.task_encoder import ChatTaskEncoder  # noqa: E402
from dct_vl.training.module import QwenVLModule, forward_step, to_stage  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from sample_chats import ROWS, crude  # noqa: E402

SEQ_LENGTH = 128
NUM_STEPS = 3
#: name → (tensor-, pipeline-parallel size, sequence parallelism)
LAYOUTS = {
    "one": (1, 1, False),
    "tp2": (2, 1, False),
    "tp2_sp": (2, 1, True),
    "pp2": (1, 2, False),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tokenizer, the model, and what of it is trained."""

    tokenizer: dict[str, Any]
    is_25: bool = False
    model: dict[str, Any] = field(default_factory=dict)


CASES = {
    "pixel": Case(tokenizer=preset_config("pixel")),
    "dct28_420": Case(tokenizer=preset_config("dct28_420")),
    "dct28_420 not whitened": Case(tokenizer={**preset_config("dct28_420"), "whiten": False}),
    "dct14_t4": Case(tokenizer=preset_config("dct14_t4")),
    "pixel_downscale": Case(tokenizer=preset_config("pixel_downscale")),
    "pixel28": Case(tokenizer=preset_config("pixel28")),
    "post_dct": Case(tokenizer=preset_config("post_dct")),
    "adaptive": Case(tokenizer=preset_config("adaptive")),
    "lora": Case(
        tokenizer=preset_config("dct28_420"),
        model={
            "tuning": "lora",
            # both stacks and the projector: gated and plain MLPs
            "lora": LoraConfig(
                target_modules=["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"],
                rank=4,
                also_train=["front_end"],
            ),
        },
    ),
    "tokenizer_only": Case(
        tokenizer=preset_config("dct28_420"), model={"tuning": "tokenizer_only"}
    ),
    "pixel, 2.5": Case(tokenizer=preset_config("pixel"), is_25=True),
    "adaptive, 2.5": Case(tokenizer=preset_config("adaptive"), is_25=True),
}


def micro_batches(folder: Path, case: Case) -> list[dict[str, Any]]:
    """Two micro batches of two rows: pictures of three sizes, several in a row, none in a row."""
    visual = build_tokenizer(case.tokenizer, min_pixels=56 * 56, max_pixels=168 * 168)
    encoder = ChatTaskEncoder(
        inputs=InputSpec(
            chat=ChatTokenizer(AutoTokenizer.from_pretrained(folder)),
            visual=visual,
            seq_length=SEQ_LENGTH,
        ),
        pad_to=SEQ_LENGTH,
        rejects=RejectLog(None, "nowhere"),
    )
    rows = [
        encoder.postencode_sample(encoder.preencode_sample(crude(row, f"k{number}")))
        for number, row in enumerate((*ROWS, ROWS[0]))
    ]
    return [encoder.batch(rows[:2]), encoder.batch(rows[2:])]


def summed_loss(batch: dict[str, Any], output: Any) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Megatron's loss function for a mean over all answer tokens of a step."""
    losses, mask = output
    total = (losses * mask).sum()
    tokens = mask.sum().to(torch.int)
    return total, tokens, {"loss": torch.stack((total.detach(), tokens.float()))}


def run_step(data: Any, model: Any) -> Any:
    """Megatron's forward step."""
    batch = to_stage(next(data))
    return forward_step(model, batch), partial(summed_loss, batch)


def train(folder: Path, case: Case, tp: int, pp: int, sp: bool) -> dict[str, list[float]]:
    """Losses and gradient norms of `NUM_STEPS` steps on this rank's part of the model."""
    settings = ModelConfig(path=str(folder), **case.model)
    options = ModelOptions(
        layer_spec="local",
        dtype=torch.float32,
        seq_length=SEQ_LENGTH,
        tokenizer=case.tokenizer,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        sequence_parallel=sp,
    )
    config = model_config(folder, options)
    config.finalize_model_grads_func = finalize_model_grads
    lightning = QwenVLModule(
        config,
        hf_folder=folder,
        trained=trained_parts(settings),
        lora=settings.lora if settings.tuning == "lora" else None,
    )
    lightning.configure_model()
    before = {n: p.detach().clone() for n, p in lightning.module.named_parameters()}
    ddp_config = DistributedDataParallelConfig(use_distributed_optimizer=True)
    model = DistributedDataParallel(config, ddp_config, lightning.module)
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam", lr=1e-3, weight_decay=0.0, clip_grad=1.0,
            use_distributed_optimizer=True,
        ),
        [model],
    )  # fmt: skip
    batches = micro_batches(folder, case)
    losses, norms = [], []
    for _ in range(NUM_STEPS):
        model.zero_grad_buffer()
        optimizer.zero_grad()
        done = get_forward_backward_func()(
            forward_step_func=run_step,
            data_iterator=iter(batches),
            model=[model],
            num_microbatches=len(batches),
            seq_length=SEQ_LENGTH,
            micro_batch_size=2,
            forward_only=False,
        )
        _, norm, _ = optimizer.step()
        norms.append(float(norm))
        if done:
            total, tokens = sum(d["loss"] for d in done)
            losses.append(float(total / tokens))
    changed = {n: not torch.equal(p, before[n]) for n, p in lightning.module.named_parameters()}
    wrong = [n for n, p in lightning.module.named_parameters() if changed[n] is not p.requires_grad]
    return {"losses": losses, "norms": norms, "wrong": wrong}


def main(folder: Path, folder_25: Path, output: Path) -> None:
    """Train all cases in all layouts and write what the last rank saw."""
    torch.distributed.init_process_group("gloo")
    found: dict[str, dict[str, Any]] = {name: {} for name in CASES}
    for layout, (tp, pp, sp) in LAYOUTS.items():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp
        )
        model_parallel_cuda_manual_seed(1)
        for name, case in CASES.items():
            seen: list[Any] = [None, None]
            run = train(folder_25 if case.is_25 else folder, case, tp, pp, sp)
            torch.distributed.all_gather_object(seen, run)
            found[name][layout] = {**seen[-1], "wrong": seen[0]["wrong"] + seen[1]["wrong"]}
        parallel_state.destroy_model_parallel()
    if torch.distributed.get_rank() == 0:
        output.write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
