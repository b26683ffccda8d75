"""The message of a run whose memory ran out."""

from __future__ import annotations

import re

import pytest
import torch

from dct_vl.runs.checks import check_layout
from dct_vl.runs.config.compose import compose_config
from dct_vl.training.estimate.memory import BatchShape
from dct_vl.training.watch.memory_advice import memory_savings
from dct_vl.training.watch.metering import MicroBatch, StepMeter
from dct_vl.training.watch.out_of_memory import (
    MemoryUse,
    advise,
    asked_gib,
    explain,
    is_out_of_memory,
)


def compose(*settings: str):
    model = "model.path=Qwen2-VL-7B-Instruct"
    return compose_config(["data.path=d", model, "tokenizer=pixel", *settings])


def micro_batch(rows: int = 2, row_length: int = 2048, cells: int = 8000) -> MicroBatch:
    return MicroBatch(
        sample_keys=tuple("abcdefghij"),
        num_rows=rows,
        row_length=row_length,
        num_text_tokens=1000,
        num_visual_tokens=cells // 4,
        num_padding_tokens=rows * row_length - cells // 4 - 1000,
        num_cells=cells,
        longest_segment=1024,
    )


def test_failed_allocations_are_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


#: with weights, gradients and optimizer state of a 7B on each of 8 GPUs
FULL = MemoryUse(total=79.0, resting=50.0, peak=76.0)


def settings_of(lines: list[str]) -> list[str]:
    return [line.strip().partition("  ")[0] for line in lines if line.startswith("  ")]


def advised(run, batch, use=FULL, world_size=8) -> list[str]:
    return settings_of(advise(run, use, batch, world_size, asked=2.0))


@pytest.mark.parametrize(
    ("settings", "batch", "world_size"),
    [
        (["trainer.micro_batch_size=4", "trainer.global_batch_size=32"], micro_batch(4), 8),
        # half of 5 divides 40 samples of a replica's step no more
        (["trainer.micro_batch_size=5", "trainer.global_batch_size=40"], micro_batch(5), 8),
        (["trainer.global_batch_size=8", "data.packing=true"], micro_batch(1), 8),
        (["trainer.global_batch_size=8", "trainer.tensor_parallel_size=4"], micro_batch(1), 8),
        (["trainer.global_batch_size=8"], micro_batch(1), 1),
    ],
)
def test_what_is_advised_can_be_started_and_saves(settings, batch, world_size):
    """Also in the way it is written: as overrides of the command that failed."""
    run = compose(*settings)
    failed = BatchShape(rows=batch.num_rows, row_tokens=2048, num_cells=8000, num_answers=1000)
    found = memory_savings(run, failed, world_size, on_cuda=True)
    assert len(found) >= 3
    for saving in found:
        changed = compose(*settings, *saving.setting.split())
        check_layout(changed, world_size)
        assert changed.data.min_pixels <= changed.data.max_pixels
        assert saving.saves > 0
        if world_size == 1:
            assert "tensor_parallel" not in saving.setting, "there is one GPU"
        if run.data.packing:
            assert "max_pixels" not in saving.setting, "packs are filled up again"


def test_what_resumes_keeps_the_sample_stream():
    """Twice the tensor-parallel ranks have half the loaders: each gets twice the processes."""
    run = compose("trainer.global_batch_size=8")
    batch = BatchShape(rows=1, row_tokens=2048, num_cells=8000, num_answers=1000)
    found = {o.setting: o.resumes for o in memory_savings(run, batch, 8, on_cuda=True)}
    wider = "trainer.tensor_parallel_size=2 trainer.sequence_parallel=true data.num_workers=4"
    assert found[wider]
    assert found["speed.recompute=true"]
    assert found["data.seq_length=1024"]
    assert not found["data.max_pixels=21952"]
    assert not found["model.tuning=lora"]


def test_only_what_is_large_enough_is_said_to_fit():
    run = compose("trainer.micro_batch_size=2", "trainer.global_batch_size=16")
    lines = advise(run, FULL, micro_batch(), 8, asked=1.0)
    assert lines[0] == "each of these settings fits by the estimate:"
    assert "speed.recompute=true" in settings_of(lines)
    # the optimizer's state alone is more than there is
    small = MemoryUse(total=24.0, resting=23.0, peak=23.9)
    lines = advise(run, small, micro_batch(), 8, asked=1.0)
    assert lines[0].startswith("no single setting fits by the estimate; these lower it most:")
    assert settings_of(lines)[0] == "model.tuning=lora"


def test_what_the_tokenizer_refuses_is_not_advised():
    """Pictures of half a token are none."""
    run = compose("data.min_pixels=1", "data.max_pixels=1000")
    assert not any(
        "max_pixels" in setting for setting in advised(run, micro_batch(1), world_size=1)
    )


def test_without_a_device_nothing_is_advised_that_needs_one():
    found = advised(compose(), micro_batch(1), use=None, world_size=1)
    assert found
    assert not any("recompute" in setting for setting in found)


def test_the_failed_allocation_counts():
    assert asked_gib("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has") == 2.5
    assert asked_gib("Tried to allocate 512.00 MiB") == 0.5
    assert asked_gib("can't allocate memory: you tried to allocate 7 bytes") == 0.0


def test_the_message_says_what_was_on_the_device():
    text = explain(
        compose("trainer.micro_batch_size=2", "trainer.global_batch_size=16"),
        rank=3,
        step=7,
        meter=StepMeter(micro_batches=[micro_batch(), micro_batch()]),
        use=FULL,
        world_size=8,
        cause="CUDA out of memory. Tried to allocate 2 GiB\nmore",
    )
    lines = text.splitlines()
    assert lines[0] == (
        "rank 3 ran out of memory in step 7: CUDA out of memory. Tried to allocate 2 GiB"
    )
    assert "of 79.0 GiB, 50.0 held weights" in lines[1]
    assert "micro batch 2: 2 rows of 2048 tokens with 10 samples; 1000 text, 2000" in lines[2]
    assert "8000 ViT patches" in lines[2]
    assert lines[2].endswith("g, h, …")
    assert lines[3] == "each of these settings fits by the estimate:"
    assert len(settings_of(lines[4:7])) == 3
    assert re.fullmatch(r"  speed\.recompute=true +about [\d.]+ GiB less", lines[4])
    assert re.fullmatch(r"  trainer\.micro_batch_size=1 +about [\d.]+ GiB less, new run", lines[5])
    assert lines[7] == "  (new run: a checkpoint of this one cannot go on with it)"
