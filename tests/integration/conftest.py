"""Training runs of the tiny model, each in processes of its own; several tests share one run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from warm_start import WarmStart

from dct_vl.runs.checkpoint_files import list_checkpoints
from dct_vl.runs.ledger import read_ledger
from dct_vl.runs.run_files import VALIDATION_NAME, read_json_lines, read_steps

ROOT = Path(__file__).resolve().parents[2]
#: six steps of four samples with a checkpoint and a validation in the middle and at the end
SETTINGS = (
    "tokenizer=dct28_420",
    "trainer.micro_batch_size=2",
    "trainer.global_batch_size=4",
    "trainer.max_steps=6",
    "trainer.save_every=3",
    "trainer.val_every=3",
    "trainer.val_batches=2",
    "trainer.accelerator=cpu",
    "data.seq_length=256",
    "data.num_workers=2",
    "optim.lr=3e-4",
    "optim.warmup_steps=2",
    "logger.tensorboard=false",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training run."""

    folder: Path

    def values(self, name: str, first: int = 1) -> list[float]:
        """A figure of steps.jsonl, from step `first` on."""
        return [entry[name] for entry in read_steps(self.folder) if entry["step"] >= first]

    def validation(self) -> dict[int, float]:
        """Validation losses by step."""
        return {e["step"]: e["loss"] for e in read_json_lines(self.folder / VALIDATION_NAME)}

    def ledger(self, first: int = 1) -> dict[int, set[str]]:
        """Keys of the samples of each step."""
        steps = read_ledger(self.folder)
        return {step: set(keys) for step, keys in steps.items() if step >= first}

    def checkpoint(self, step: int) -> Path:
        """The checkpoint of a step."""
        return next(p for p in list_checkpoints(self.folder) if p.name.endswith(f"{step:08d}"))


class Trainer:
    """Starts `dct-vl fit` on the shared shards and model."""

    def __init__(self, shards: Path, model: Path, log_dir: Path) -> None:
        self.settings = (*SETTINGS, f"data.path={shards}", f"model.path={model}")
        self.log_dir = log_dir
        self.warm = WarmStart(self.environ(), log_dir)

    def command(self, name: str, overrides: Sequence[str] = (), ranks: int = 1) -> list[str]:
        """Command line of a run, under torchrun where it has several ranks."""
        start = ["-m", "dct_vl", "fit"]
        if ranks > 1:
            torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
            start = [*torchrun, "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", *start]
        where = [f"log_dir={self.log_dir}", f"experiment_name={name}"]
        return [sys.executable, *start, *self.settings, *where, *overrides]

    def environ(self) -> dict[str, str]:
        """One OpenMP thread a process: spinning threads on shared cores cost minutes."""
        return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def folder(self, name: str) -> Path:
        """Folder of a run."""
        return self.log_dir / name

    def __call__(self, name: str, *overrides: str, ranks: int = 1) -> Run:
        """Train to the end; fails the test where training fails."""
        done = self.attempt(name, *overrides, ranks=ranks)
        assert done.returncode == 0, done.stderr[-8000:]
        return Run(folder=self.folder(name))

    def attempt(
        self, name: str, *overrides: str, ranks: int = 1
    ) -> subprocess.CompletedProcess[str]:
        """Train and return the outcome, good or bad."""
        words = self.command(name, overrides)[3:]
        return self.warm.run(words, ranks=ranks, variables={}, cwd=ROOT)

    def cold(self, name: str, *overrides: str, ranks: int = 1) -> Run:
        """Train as a user's shell does, in processes that import everything themselves."""
        done = self._run(self.command(name, overrides, ranks))
        assert done.returncode == 0, done.stderr[-8000:]
        return Run(folder=self.folder(name))

    def launch(self, name: str, *overrides: str, ranks: int) -> subprocess.CompletedProcess[str]:
        """The same through `dct-vl launch`."""
        words = [word for word in self.command(name, overrides)[4:] if "accelerator" not in word]
        command = [sys.executable, "-m", "dct_vl", "launch", *words]
        return self._run(command, DEVICES="cpu", NUM_PROC_PER_NODE=str(ranks))

    def _run(self, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**self.environ(), **variables},
            cwd=ROOT,
        )


@pytest.fixture(scope="session")
def train(
    shards: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trainer]:
    trainer = Trainer(shards, tiny_model, tmp_path_factory.mktemp("runs"))
    yield trainer
    trainer.warm.close()


@pytest.fixture(scope="session")
def reference(train: Trainer) -> Run:
    """One process, six steps without a break: what every other run is compared with."""
    return train.cold("reference")


@pytest.fixture(scope="session")
def data_parallel(train: Trainer) -> Run:
    """The same run on two data-parallel ranks, each with half of the loader processes."""
    return train.cold("data_parallel", "data.num_workers=1", "trainer.val_every=0", ranks=2)


@pytest.fixture(scope="session")
def tensor_parallel(train: Trainer) -> Run:
    """The same run on two tensor-parallel ranks."""
    return train("tensor_parallel", "trainer.tensor_parallel_size=2", ranks=2)


@pytest.fixture(scope="session")
def grid(train: Trainer) -> Run:
    """One step of the stock-like tokenizer on two by two tensor- and pipeline-parallel ranks."""
    return train(
        "grid",
        "tokenizer=dct14",
        "trainer.tensor_parallel_size=2",
        "trainer.pipeline_parallel_size=2",
        "trainer.stop_at_step=1",
        "trainer.val_every=0",
        "data.num_workers=1",
        ranks=4,
    )


@pytest.fixture(scope="session")
def grid_in_transformers(grid: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, exported by one process."""
    out = tmp_path_factory.mktemp("exported") / "hf"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dct_vl", "export", str(grid.folder), str(out)),
            *("--check", "6"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return out
