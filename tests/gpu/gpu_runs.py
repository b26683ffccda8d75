"""Training runs of the tiny model on one device, several at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dct_vl.runs.checkpoint_files import list_checkpoints
from dct_vl.runs.run_files import read_steps

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
#: four steps of two packs each, with a rate at which every step shows in the next one's loss
SETTINGS = (
    "tokenizer=dct28_420",
    "data.packing=true",
    "data.seq_length=512",
    "data.num_workers=1",
    "trainer.micro_batch_size=1",
    "trainer.global_batch_size=2",
    "trainer.max_steps=4",
    "trainer.val_every=0",
    "trainer.save_every=0",
    "optim.lr=1e-2",
    "optim.warmup_steps=0",
    "logger.tensorboard=false",
    # test_packed_bf16.py compiles
    "speed.compile=false",
)
#: device memory of the run that is to have too little of it, MiB
SMALL_MEMORY = 96
#: packs whose pictures alone are more than that as float32
LARGE_PACKS = (
    "tokenizer=pixel",
    "data.seq_length=16384",
    "trainer.micro_batch_size=2",
    "model.layer_spec=local",
)
TIMEOUT_S = 240


class Background:
    """Processes beside the tests.

    Args:
        logs: folder for what they print.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._pool = ThreadPoolExecutor(max_workers=16)
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        after: Future[str] | None = None,
        status: int = 0,
        **environ: str,
    ) -> Future[str]:
        """What a process printed, once it has ended with `status`, which is asserted.

        Args:
            name: of its log.
            command: its words.
            after: what has to be done before.
            status: expected.
            environ: variables that it gets besides.
        """

        def wait() -> str:
            if after is not None:
                after.result()
            path = self.logs / f"{name}.log"
            words = [str(ROOT), os.environ.get("PYTHONPATH", "")]
            where = {"PYTHONPATH": os.pathsep.join(word for word in words if word)}
            with open(path, "wb") as log:
                process = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                    env={**os.environ, **where, **environ},
                )
                self._processes.append(process)
                process.wait(TIMEOUT_S)
            said = path.read_text(errors="replace")
            assert process.returncode == status, f"{name} ended with {process.returncode}:\n{said}"
            return said

        return self._pool.submit(wait)

    def close(self) -> None:
        """End what still runs."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Losses and gradient norms by step."""

    losses: dict[int, float]
    norms: dict[int, float]


class Runs:
    """Starts all runs at once, those that go on from others as soon as these have ended.

    local, te: four steps without a break. frozen: the same samples at no rate to speak of. local_te
    and te_local: two steps with the first layer spec, two with the second. local_again: goes on
    from the checkpoint of local_te, with the first one. busy: two steps of local, with busy_stream.
    small: with too little memory.
    """

    def __init__(self, shards: Path, model: Path, folder: Path, *, with_te: bool) -> None:
        self.folder = folder
        self.settings = (*SETTINGS, f"data.path={shards}", f"model.path={model}")
        self.background = Background(folder)
        self._done = {
            "local": self._start("local", "local"),
            "frozen": self._start("frozen", "local", "optim.lr=1e-12", "optim.min_lr=0"),
        }
        busy = [sys.executable, str(HERE / "busy_stream.py"), "fit"]
        self._done["busy"] = self._start("busy", "local", "trainer.stop_at_step=2", command=busy)
        half = self._start("local_te", "local", "trainer.stop_at_step=2", log="local_te-half")
        checkpoint = folder / "local_te" / "checkpoints" / "step-00000002"
        again = f"trainer.resume={checkpoint}"
        self._done["local_again"] = self._start("local_again", "local", again, after=half)
        if with_te:
            self._done["te"] = self._start("te", "te")
            self._done["local_te"] = self._start("local_te", "te", after=half)
            half = self._start("te_local", "te", "trainer.stop_at_step=2", log="te_local-half")
            self._done["te_local"] = self._start("te_local", "local", after=half)
        small = [sys.executable, str(HERE / "small_memory.py"), str(SMALL_MEMORY)]
        words = [*self.settings, *self._place("small"), *LARGE_PACKS]
        self._small = self.background.start("small", [*small, "fit", *words], status=1)

    def _place(self, name: str) -> list[str]:
        return [f"log_dir={self.folder}", f"experiment_name={name}"]

    def _start(
        self,
        name: str,
        spec: str,
        *overrides: str,
        after: Future[str] | None = None,
        log: str | None = None,
        command: Sequence[str] = (sys.executable, "-m", "dct_vl", "fit"),
    ) -> Future[str]:
        words = [*self.settings, *self._place(name), f"model.layer_spec={spec}", *overrides]
        return self.background.start(log or name, [*command, *words], after=after)

    def run(self, name: str) -> Path:
        """Folder of a run that has ended well."""
        self._done[name].result()
        return self.folder / name

    def figures(self, name: str) -> Figures:
        """Of a run that has ended well."""
        steps = read_steps(self.run(name))
        return Figures(
            losses={entry["step"]: entry["loss"] for entry in steps},
            norms={entry["step"]: entry["grad_norm"] for entry in steps},
        )

    def out_of_memory(self) -> str:
        """What the run printed that had too little memory."""
        return self._small.result()

    def checkpoint(self, name: str, step: int) -> Path:
        """A run's checkpoint."""
        folder = self.run(name)
        return next(p for p in list_checkpoints(folder) if p.name.endswith(f"{step:08d}"))

    def close(self) -> None:
        """End what still runs."""
        self.background.close()
