"""Start all processes of a run on this machine, after everything has been checked.

Nothing heavy (Megatron, NeMo, weights, data) is imported or touched before the checks pass.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dct_vl.errors import ConfigError
from dct_vl.runs.checks import check_model_layout, check_run
from dct_vl.runs.config.compose import compose_config
from dct_vl.runs.config.schema import RunConfig
from dct_vl.training.processes.supervise import FOLDER_VARIABLE, describe_errors, supervise

_CPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
#: GPUs of a node that nobody can ask, as launch/slurm.sbatch wants them
_GPUS_ELSEWHERE = 8


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Where the processes run; torchrun's own variables for several nodes."""

    num_nodes: int
    node_rank: int
    processes_per_node: int
    on_cpu: bool
    master_addr: str
    master_port: int
    #: the number of GPUs is a guess
    is_guessed: bool = False

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.processes_per_node


def launch(arguments: Sequence[str], environ: dict[str, str] | None = None) -> None:
    """Print the settings, check them, run the doctor and then torchrun.

    Args:
        arguments: overrides of `dct-vl fit`; `--dry-run` prints the command only.
        environ: the environment (default: the process's): DEVICES (a number of GPUs, "cpu", or
            "auto"), NUM_PROC_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT.

    Raises:
        ConfigError: a setting that cannot work, with the numbers and the fix.
    """
    environ = dict(os.environ if environ is None else environ)
    dry_run = "--dry-run" in arguments
    overrides = [a for a in arguments if a != "--dry-run"]
    run = compose_config(overrides)
    machines = read_machines(environ, dry_run=dry_run)
    print(describe(run, machines))
    division = check_run(run, machines.world_size)
    print(f"  data parallel         {division.data_parallel_size}")
    print(f"  micro batches a step  {division.num_micro_batches}", flush=True)
    command = torchrun_command(machines, overrides)
    if machines.on_cpu:
        environ["CUDA_VISIBLE_DEVICES"] = ""
        environ.setdefault("OMP_NUM_THREADS", "1")
    if dry_run:
        names = (*_CPU_VARIABLES, "PYTHONPATH") if machines.on_cpu else ("PYTHONPATH",)
        given = [f"{name}={environ[name]}" for name in names if name in environ]
        print(shlex.join(["env", *given, *command]))
        return
    from dct_vl.training.processes.doctor import examine
    from dct_vl.training.processes.tiny_model import with_model_folder

    run = with_model_folder(run)
    check_model_layout(run)
    if not examine(run, on_cpu=machines.on_cpu):
        raise ConfigError("the doctor found what would stop the run (lines with FAIL above)")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="dct-vl-errors-") as errors:
        status = supervise(command, {**environ, FOLDER_VARIABLE: errors})
        said = describe_errors(Path(errors)) if status else ""
    if said:
        print(f"\n{said}", file=sys.stderr)
    sys.exit(status)


def read_machines(environ: dict[str, str], *, dry_run: bool = False) -> Machines:
    """Processes and nodes from the environment.

    Args:
        environ: see `launch`.
        dry_run: nothing will be started. With several nodes, or a MASTER_ADDR, this machine is then
            perhaps none of them, so that its GPUs are not asked for, and 8 a node are assumed where
            it has none and DEVICES does not say how many.

    Raises:
        ConfigError: a value that is not a number, more processes than devices, no device, or, of
            several nodes, one that does not know its rank or where to meet the others.
    """
    num_nodes = _number("NNODES", environ.get("NNODES") or "1")
    devices = environ.get("DEVICES", "auto").strip().lower() or "auto"
    on_cpu = devices == "cpu"
    available = 0 if on_cpu else _count_gpus()
    is_elsewhere = dry_run and (num_nodes > 1 or bool(environ.get("MASTER_ADDR")))
    is_guessed = devices == "auto" and available == 0 and is_elsewhere
    if is_guessed:
        count = _GPUS_ELSEWHERE
    elif devices == "auto":
        on_cpu, count = available == 0, max(available, 1)
    elif on_cpu:
        count = 1
    else:
        if "," in devices:
            raise ConfigError(
                f"DEVICES={devices}; expected how many: name the GPUs in CUDA_VISIBLE_DEVICES"
            )
        count = _number("DEVICES", devices)
        if count > available and not is_elsewhere:
            raise ConfigError(
                f"DEVICES={count}, but this machine has {available} CUDA devices: lower it, or "
                "set DEVICES=cpu"
            )
    processes = _number("NUM_PROC_PER_NODE", environ.get("NUM_PROC_PER_NODE") or str(count))
    if not (on_cpu or is_guessed) and processes > count:
        raise ConfigError(
            f"NUM_PROC_PER_NODE={processes} is more than DEVICES={count}: each process needs a "
            "GPU of its own"
        )
    return Machines(
        num_nodes=num_nodes,
        processes_per_node=processes,
        on_cpu=on_cpu,
        is_guessed=is_guessed,
        **_meeting(environ, num_nodes),
    )


def _meeting(environ: dict[str, str], num_nodes: int) -> dict[str, Any]:
    names = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    absent = [name for name in names if not environ.get(name)]
    if num_nodes > 1 and absent:
        raise ConfigError(
            f"NNODES={num_nodes} without {' and '.join(absent)}: every node needs its own "
            "NODE_RANK, from 0, and the same MASTER_ADDR and MASTER_PORT"
        )
    rank = _number("NODE_RANK", environ.get("NODE_RANK") or "0", least=0)
    if rank >= num_nodes:
        raise ConfigError(f"NODE_RANK={rank} of NNODES={num_nodes}; expected 0 to {num_nodes - 1}")
    if num_nodes == 1:
        return {"node_rank": 0, "master_addr": "127.0.0.1", "master_port": 0}
    port = _number("MASTER_PORT", environ["MASTER_PORT"])
    if port > 65535:
        raise ConfigError(f"MASTER_PORT={port}; expected at most 65535")
    return {"node_rank": rank, "master_addr": environ["MASTER_ADDR"], "master_port": port}


def torchrun_command(machines: Machines, overrides: Sequence[str]) -> list[str]:
    """The torchrun command line of this node."""
    if machines.num_nodes == 1:
        # a free port of torchrun's choice, so that several runs share a machine
        rendezvous = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    else:
        rendezvous = [
            f"--node-rank={machines.node_rank}",
            f"--master-addr={machines.master_addr}",
            f"--master-port={machines.master_port}",
        ]
    accelerator = "cpu" if machines.on_cpu else "gpu"
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nnodes={machines.num_nodes}",
        f"--nproc-per-node={machines.processes_per_node}",
        *rendezvous,
        "-m",
        "dct_vl",
        "fit",
        *overrides,
        f"trainer.accelerator={accelerator}",
    ]


def describe(run: RunConfig, machines: Machines) -> str:
    """The resolved settings, one a line."""
    trainer = run.trainer
    where = "CPU" if machines.on_cpu else "GPU"
    if machines.is_guessed:
        where += ", a guess as this machine has none: DEVICES=N says how many a node has"
    rows = {
        "experiment": f"{run.experiment_name} → {run.log_dir}/{run.experiment_name}",
        "processes": f"{machines.num_nodes} × {machines.processes_per_node} on {where}",
        "tokenizer": str(run.tokenizer.get("name")),
        "pixels": f"{run.data.min_pixels} … {run.data.max_pixels}",
        "micro / global batch": f"{trainer.micro_batch_size} / {trainer.global_batch_size}",
        "TP × PP × CP": (
            f"{trainer.tensor_parallel_size} × {trainer.pipeline_parallel_size} × "
            f"{trainer.context_parallel_size}"
        ),
        "steps": str(trainer.max_steps),
        "data": run.data.path,
        "model": run.model.path,
    }
    return "\n".join(f"  {name:<21} {value}" for name, value in rows.items())


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _number(name: str, text: str, least: int = 1) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ConfigError(f"{name}={text!r}; expected a whole number") from None
    if value < least:
        raise ConfigError(f"{name}={value}; expected at least {least}")
    return value
