"""Runs of a check, one start a layout, and their figures compared with those of one process."""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from dct_vl.errors import ConfigError
from dct_vl.runs.checks import check_run
from dct_vl.runs.config.compose import compose_config
from dct_vl.runs.run_files import read_steps
from dct_vl.training.layout_check.layouts import Inputs, ParallelLayout
from dct_vl.training.processes.launch import Machines, torchrun_command
from dct_vl.training.processes.supervise import FOLDER_VARIABLE, describe_errors

#: variant → its settings
VARIANTS: dict[str, tuple[str, ...]] = {
    "padded": ("data.packing=false",),
    "packed": ("data.packing=true",),
}
SEQ_LENGTH = 512


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """What the runs of a check have in common."""

    inputs: Inputs
    work_dir: Path
    on_cpu: bool
    num_ranks: int
    tokenizer: str
    layer_spec: str
    steps: int

    @property
    def num_streams(self) -> int:
        """Loader processes of a run; the number that every data-parallel size divides."""
        return 4 if self.num_ranks >= 4 else 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layout in one variant."""

    variant: str
    layout: ParallelLayout

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.layout.name}"


@dataclass(frozen=True, kw_only=True)
class CaseOutcome:
    """What a run gave: its figures by step, or why there are none."""

    case: Case
    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    seconds: float = 0.0
    #: why the configuration was turned down before anything started
    refusal: str = ""
    #: last lines of a run that broke
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class _Running:
    case: Case
    process: subprocess.Popen[bytes]
    devices: tuple[int, ...]
    log: IO[bytes]
    started: float


def overrides_of(case: Case, settings: CheckSettings) -> list[str]:
    """The command-line settings of a run."""
    return [
        f"data.path={settings.inputs.shards}",
        f"model.path={settings.inputs.model}",
        f"log_dir={settings.work_dir / 'runs'}",
        f"experiment_name={case.name}",
        f"tokenizer={settings.tokenizer}",
        f"model.layer_spec={settings.layer_spec}",
        f"data.seq_length={SEQ_LENGTH}",
        "trainer.micro_batch_size=2",
        f"trainer.global_batch_size={2 * settings.num_streams}",
        f"trainer.max_steps={settings.steps}",
        "trainer.val_every=0",
        "trainer.save_every=-1",
        "optim.lr=3e-4",
        "optim.warmup_steps=1",
        "logger.tensorboard=false",
        # half a minute a run on GPUs, in which nothing of the layout happens
        "speed.compile=false",
        *VARIANTS[case.variant],
        *case.layout.overrides(settings.num_streams),
    ]


def run_cases(
    cases: Sequence[Case], settings: CheckSettings, on_done: Callable[[CaseOutcome], None]
) -> list[CaseOutcome]:
    """Run all cases, in order as far as there is room, each in processes of its own; `on_done` is
    called with each outcome as it comes.
    """
    waiting = []
    outcomes: list[CaseOutcome] = []

    def finish(outcome: CaseOutcome) -> None:
        outcomes.append(outcome)
        on_done(outcome)

    for case in cases:
        try:
            check_run(compose_config(overrides_of(case, settings)), case.layout.num_ranks)
            waiting.append(case)
        except ConfigError as error:
            finish(CaseOutcome(case=case, refusal=str(error)))
    free = list(range(settings.num_ranks))
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and waiting[0].layout.num_ranks <= len(free):
                case = waiting.pop(0)
                devices = tuple(free[: case.layout.num_ranks])
                free = free[case.layout.num_ranks :]
                running.append(_start(case, devices, settings))
            time.sleep(0.1)
            for item in [r for r in running if r.process.poll() is not None]:
                running.remove(item)
                free = sorted((*free, *item.devices))
                finish(_outcome(item, settings))
    finally:
        for item in running:
            item.process.terminate()
            item.process.wait()
            item.log.close()
    return outcomes


def _errors_of(case: Case, settings: CheckSettings) -> Path:
    return settings.work_dir / "errors" / case.name


def _start(case: Case, devices: tuple[int, ...], settings: CheckSettings) -> _Running:
    machines = Machines(
        num_nodes=1,
        node_rank=0,
        processes_per_node=len(devices),
        on_cpu=settings.on_cpu,
        master_addr="127.0.0.1",
        master_port=0,
    )
    errors = _errors_of(case, settings)
    errors.mkdir(parents=True)
    environ = {**os.environ, FOLDER_VARIABLE: str(errors.absolute())}
    if settings.on_cpu:
        environ["CUDA_VISIBLE_DEVICES"] = ""
        environ.setdefault("OMP_NUM_THREADS", "1")
    else:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = [visible[d] if d < len(visible) and visible[d] else str(d) for d in devices]
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(names)
    log = open(settings.work_dir / f"{case.name}.log", "wb")  # noqa: SIM115  (closed at its end)
    process = subprocess.Popen(
        torchrun_command(machines, overrides_of(case, settings)),
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environ,
    )
    return _Running(case=case, process=process, devices=devices, log=log, started=time.monotonic())


def _outcome(item: _Running, settings: CheckSettings) -> CaseOutcome:
    item.log.close()
    seconds = time.monotonic() - item.started
    if item.process.returncode:
        path = Path(item.log.name)
        said = describe_errors(_errors_of(item.case, settings))
        if not said:
            said = "\n".join(path.read_text(errors="replace").splitlines()[-12:])
        failure = f"exit status {item.process.returncode}, {path}:\n{said}"
        return CaseOutcome(case=item.case, seconds=seconds, failure=failure)
    steps = read_steps(settings.work_dir / "runs" / item.case.name)
    return CaseOutcome(
        case=item.case,
        losses=tuple(step["loss"] for step in steps),
        norms=tuple(step["grad_norm"] for step in steps),
        seconds=seconds,
    )


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest relative differences that pass."""

    loss: float
    norm: float


#: fp32 on CPU ranks: rounding of sums in another order
FP32 = Tolerance(loss=1e-4, norm=1e-3)
#: bf16 on GPUs: activations of 8 bits of precision, reduced in another order at every layer
BF16 = Tolerance(loss=2e-2, norm=1e-1)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One line of the table."""

    variant: str
    layout: str
    status: Literal["PASS", "FAIL", "REFUSED"]
    loss_difference: float | None
    norm_difference: float | None
    seconds: float
    reason: str


def judge(
    outcome: CaseOutcome, reference: CaseOutcome, tolerance: Tolerance, steps: int
) -> Verdict:
    """PASS where all steps agree, REFUSED where the configuration of a layout was turned down, else
    FAIL; a reference that was turned down is a fault of the settings.
    """
    case = outcome.case
    loss = norm = None
    status: Literal["PASS", "FAIL", "REFUSED"] = "FAIL"
    if outcome.refusal:
        status = "FAIL" if outcome is reference else "REFUSED"
        reason = outcome.refusal
    elif outcome.failure:
        reason = outcome.failure
    elif reference.refusal or reference.failure:
        reason = "there is no reference to compare with"
    elif not len(outcome.losses) == len(reference.losses) == steps:
        done = f"{len(outcome.losses)} steps, the reference {len(reference.losses)}"
        reason = f"{done}; expected {steps}"
    else:
        loss = largest_difference(outcome.losses, reference.losses)
        norm = largest_difference(outcome.norms, reference.norms)
        good = loss <= tolerance.loss and norm <= tolerance.norm
        status = "PASS" if good else "FAIL"
        reason = "" if good else f"more than {tolerance.loss:g} (loss) or {tolerance.norm:g} (norm)"
    return Verdict(
        variant=case.variant,
        layout=case.layout.name,
        status=status,
        loss_difference=loss,
        norm_difference=norm,
        seconds=round(outcome.seconds, 1),
        reason=reason,
    )


def largest_difference(found: tuple[float, ...], expected: tuple[float, ...]) -> float:
    """Largest relative difference; infinite where any figure is not finite."""
    if not all(math.isfinite(x) for x in (*found, *expected)):
        return math.inf
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(found, expected, strict=True))
