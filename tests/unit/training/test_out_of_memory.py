"""The message of a run whose memory ran out."""

from __future__ import annotations

import pytest
import torch

from training.config.compose import compose_config
from training.metering import MicroBatch, StepMeter
from training.out_of_memory import MemoryUse, advise, explain, is_out_of_memory


def compose(*settings: str):
    return compose_config(["data.path=d", "model.path=m", "tokenizer=pixel", *settings])


def test_failed_allocations_are_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def names(run, use, data_parallel_size=1):
    return [name for name, _ in advise(run, use, data_parallel_size)]


def test_activations_ask_for_recomputation_and_smaller_batches():
    use = MemoryUse(total=140.0, resting=30.0, peak=139.0)
    found = names(compose("trainer.micro_batch_size=4"), use)
    assert found[0] == "speed.recompute=true"
    assert "trainer.micro_batch_size=2" in found[:3]
    found = names(compose("trainer.micro_batch_size=1", "speed.recompute=true"), use)
    assert "speed.recompute=true" not in found
    assert not any(name.startswith("trainer.micro_batch_size") for name in found)


def test_optimizer_state_asks_for_adapters_and_sharding():
    use = MemoryUse(total=140.0, resting=130.0, peak=135.0)
    run = compose("trainer.distributed_optimizer=false")
    found = names(run, use, data_parallel_size=8)[:3]
    assert set(found) >= {"model.tuning=lora", "trainer.distributed_optimizer=true"}
    run = compose("model.tuning=lora", "trainer.tensor_parallel_size=8")
    found = names(run, use, data_parallel_size=8)
    assert not any("tuning" in name or "tensor" in name or "optim" in name for name in found)


def test_the_message_says_what_was_on_the_device():
    batch = MicroBatch(
        sample_keys=tuple("abcdefghij"),
        num_rows=2,
        row_length=2048,
        num_text_tokens=1000,
        num_visual_tokens=2000,
        num_padding_tokens=1096,
        num_cells=8000,
        longest_segment=1024,
    )
    text = explain(
        compose(),
        rank=3,
        step=7,
        meter=StepMeter(micro_batches=[batch, batch]),
        use=MemoryUse(total=140.0, resting=40.0, peak=139.0),
        data_parallel_size=8,
        cause="CUDA out of memory. Tried to allocate 2 GiB\nmore",
    )
    lines = text.splitlines()
    assert lines[0] == (
        "rank 3 ran out of memory in step 7: CUDA out of memory. Tried to allocate 2 GiB"
    )
    assert "of 140.0 GiB, 40.0 held weights" in lines[1]
    assert "micro batch 2: 2 rows of 2048 tokens with 10 samples; 1000 text, 2000" in lines[2]
    assert "8000 ViT patches" in lines[2]
    assert lines[2].endswith("g, h, …")
    assert lines[3] == "these settings lower it most:"
    assert len(lines) == 7
    assert lines[4].split() == ["speed.recompute=true", "about", "79.2", "GiB", "less"]
