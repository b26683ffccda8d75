"""The other contestants of train_step.py, on NeMo's Trainer: this project's step and NeMo's own.

    python benchmarks/train_step_nemo.py CASE.json RESULT.json

Both run MegatronStrategy with Megatron's distributed optimizer: bf16 parameters, gradients summed
in float32, AdamW with float32 master weights and state; Transformer Engine's kernel where it is
installed, torch's otherwise. The time of a step is that of a block of steps by their number: loop,
logging once a block, and transfer of the batch included.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dct_vl.compat import activate

activate()

import lightning.pytorch as pl  # noqa: E402
from nemo.collections.multimodal.data.energon.base import SequentialMegatronSampler  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from train_step_times import PROFILED, StepTimes  # noqa: E402

from dct_tokenizer import VisualTokenizer, preset_config  # noqa: E402
from dct_vl.inputs.batch import Batch, pack_batch, pad_batch  # noqa: E402
from dct_vl.inputs.cells import encode_visual  # noqa: E402
from dct_vl.inputs.chat import VISUAL_TOKEN_INDEX  # noqa: E402
from dct_vl.inputs.samples import EncodedChat  # noqa: E402
from dct_vl.model.layer_specs import resolve_layer_spec  # noqa: E402
from dct_vl.runs.checks import Division  # noqa: E402
from dct_vl.runs.config.schema import RunConfig  # noqa: E402
from dct_vl.runs.derived import RunSettings  # noqa: E402
from dct_vl.runs.run_files import run_dir  # noqa: E402
from dct_vl.training.build import build_data, build_model  # noqa: E402
from dct_vl.training.restart.stop_signals import StopSignals  # noqa: E402
from dct_vl.training.trainer import build_trainer  # noqa: E402
from dct_vl.training.watch.out_of_memory import MemoryWatch  # noqa: E402


class Repeat(pl.LightningDataModule):
    """The same micro batch for ever.

    Args:
        batch: on the CPU; goes to the device in every step.
        rows: its rows.
        seq_length: tokens of a row.
    """

    def __init__(self, batch: Batch | dict[str, Any], *, rows: int, seq_length: int) -> None:
        super().__init__()
        self.batch = batch
        self.data_sampler = SequentialMegatronSampler(
            seq_len=seq_length, micro_batch_size=rows, global_batch_size=rows
        )

    def train_dataloader(self) -> Any:
        """Lightning's hook."""
        return _Endless(self.batch)


class _Endless:
    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.batch


def make_sample(case: dict[str, Any], visual: VisualTokenizer, number: int) -> EncodedChat:
    """Text, one image, text; loss on the text."""
    generator = np.random.default_rng(number)
    side = 14 * case["grid"]
    plan = visual.plan(side, side)
    frames = generator.integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    before, after = case["text"] // 4 + 1, case["text"] - case["text"] // 4 + 1
    ids = generator.integers(10, case["max_text_id"], before + after)
    visual_ids = np.full(plan.num_llm_tokens, VISUAL_TOKEN_INDEX)
    tail = before + plan.mrope_extent
    positions = (
        np.tile(np.arange(before), (3, 1)),
        np.asarray(plan.mrope_positions).T + before,
        np.tile(np.arange(tail, tail + after), (3, 1)),
    )
    input_ids = np.concatenate((ids[:before], visual_ids, ids[before:])).astype(np.int64)
    is_text = input_ids != VISUAL_TOKEN_INDEX
    return EncodedChat(
        __key__=str(number),
        __restore_key__=(),
        __subflavors__=None,
        input_ids=input_ids,
        is_answer=is_text if case["loss_on"] == "text" else np.ones_like(is_text),
        position_ids=np.concatenate(positions, axis=1).astype(np.int64),
        visual=encode_visual(visual, [frames], [plan]),
    )


def run_config(case: dict[str, Any], folder: Path, seq_length: int) -> RunConfig:
    """The run's settings, as the command line would make them."""
    run = OmegaConf.structured(RunConfig)
    rows = 1 if case["packed"] else case["images"]
    given = {
        "experiment_name": "train_step",
        "log_dir": str(folder / "runs"),
        "tokenizer": preset_config(case["tokenizer"]),
        "model": {"path": str(folder / "model"), "layer_spec": case["layer_spec"]},
        "data": {
            "path": case.get("data_path") or str(folder / "none.yaml"),
            "seq_length": seq_length,
            "max_pixels": 10**7,
            "packing": case["packed"],
        },
        "trainer": {
            "max_steps": case["warmup"] + case["steps"],
            "micro_batch_size": rows,
            "global_batch_size": rows,
            "val_every": 0,
            "save_every": -1,
            # a line of the log waits for the device
            "log_every": case["block"],
        },
        "logger": {"tensorboard": False},
    }
    merged = OmegaConf.merge(run, given, OmegaConf.from_dotlist(case["overrides"]))
    result: RunConfig = OmegaConf.to_object(merged)
    return result


def write_model_folder(case: dict[str, Any], folder: Path, *, with_tokenizer: bool) -> None:
    """config.json of the shape, without weights; they are drawn on the device."""
    from dct_vl.model.random_model.shapes import TinyShape, config_2b, tiny_config

    if case["shape"] == "2b":
        config = config_2b()
    else:
        config = tiny_config(TinyShape(), first_special_id=case["max_text_id"])
    if with_tokenizer:
        from dct_vl.model.random_model.tokenizer import train_tokenizer
        from dct_vl.training.processes.tiny_model import shard_texts

        tokenizer = train_tokenizer(
            list(shard_texts(case["data_path"]))[:2000],
            max_bpe_size=min(8192, case["max_text_id"]),
            first_special_id=case["max_text_id"],
        )
        tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)


def run_ours(case: dict[str, Any], times: StepTimes, folder: Path) -> dict[str, Any]:
    """This project's trainer on one batch, or on shards."""
    from_shards = case.get("data_path") is not None
    write_model_folder(case, folder / "model", with_tokenizer=from_shards)
    visual = RunSettings(run_config(case, folder, 4096)).visual
    data: Any
    if from_shards:
        run = run_config(case, folder, case["seq_length"])
        data = build_data(run)
    else:
        samples = [make_sample(case, visual, number) for number in range(case["images"])]
        total = sum(len(sample.input_ids) for sample in samples)
        seq_length = total if case["packed"] else len(samples[0].input_ids)
        run = run_config(case, folder, seq_length)
        if case["packed"]:
            batch = pack_batch([samples], visual=visual, length=seq_length)
        else:
            batch = pad_batch(samples, visual=visual, pad_to=None, pad_multiple=1)
        rows = run.trainer.micro_batch_size
        data = Repeat(batch, rows=rows, seq_length=seq_length)
    (folder / "none.yaml").touch()  # stands for the shards where a run wants to know them
    run_folder = run_dir(run)
    run_folder.mkdir(parents=True, exist_ok=True)
    model = build_model(run, load_weights=False)
    division = Division(world_size=1, data_parallel_size=1, num_micro_batches=1)
    trainer = build_trainer(run, run_folder, division, StopSignals(), MemoryWatch(run, 1))
    trainer.callbacks.insert(0, times)
    trainer.fit(model, data)
    lines = [json.loads(line) for line in (run_folder / "steps.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["step"] > case["warmup"]] or lines
    samples = sum(line["num_samples"] for line in kept)
    return {
        "layer_spec": resolve_layer_spec(run.model.layer_spec),
        "data_wait_share": times.data_wait / (times.ends[-1] - times.ends[0]),
        "logged_mfu": kept[-1]["mfu"] and statistics.median(line["mfu"] for line in kept),
        "samples_per_step": samples / len(kept),
        "text_per_sample": sum(line["num_text_tokens"] for line in kept) / samples,
        "visual_per_sample": sum(line["num_visual_tokens"] for line in kept) / samples,
    }


def main() -> None:
    """Run the case and write its result."""
    case = json.loads(Path(sys.argv[1]).read_text())
    times = StepTimes(
        warmup=case["warmup"],
        block=case["block"],
        profile_at=case["warmup"] if case.get("profile") else None,
    )
    pl.seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        if case["stack"] == "nemo":
            from train_step_stock import run_stock, stock_batch, stock_length

            data = Repeat(stock_batch(case), rows=case["images"], seq_length=stock_length(case))
            facts = run_stock(case, times, data)
        else:
            facts = run_ours(case, times, Path(folder))
    steps = np.diff(times.ends) / (PROFILED if times.profile else case["block"])
    on_cuda = torch.cuda.is_available()
    te = importlib.util.find_spec("transformer_engine") is not None
    facts |= {
        "versions": f"torch {torch.__version__}" + (", Transformer Engine" if te else ""),
        "optimizer": "Megatron distributed AdamW, fp32 master and state"
        + (" (Transformer Engine)" if te and on_cuda else " (torch)"),
        "seconds": float(np.median(steps)),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_cuda else None,
        "loss": times.losses[-1] if times.losses else None,
        "profile": times.profile,
    }
    Path(sys.argv[2]).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
