"""Processes that hold one model together are a team; teams take batches until none is left."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import orjson
import torch
import torch.distributed as dist

#: a team may decode long videos, or wait for another one's, without anything being wrong
_PATIENCE = timedelta(hours=6)
_CLAIMS, _ANSWERS, _DONE, _PLAN = "claims", "answers", "teams_done", "plan"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a model and its copies are spread over processes."""

    tensor: int = 1
    pipeline: int = 1
    #: copies of the model
    teams: int = 1

    @property
    def num_processes(self) -> int:
        """Of all teams."""
        return self.tensor * self.pipeline * self.teams


def layout_of(
    tensor: int, pipeline: int, teams: int | None, environ: Mapping[str, str] = os.environ
) -> Layout:
    """The layout that was asked for, or as many teams as torchrun's processes make.

    Raises:
        ValueError: torchrun's processes are no whole number of teams, or not the number asked for.
    """
    started = int(environ.get("WORLD_SIZE", "1"))
    if "WORLD_SIZE" not in environ:
        return Layout(tensor=tensor, pipeline=pipeline, teams=teams or 1)
    size = tensor * pipeline
    if started % size or (teams is not None and started != size * teams):
        raise ValueError(
            f"torchrun started {started} processes; --tp {tensor} --pp {pipeline} needs "
            + (f"{size * teams} for {teams} workers" if teams else f"a multiple of {size}")
        )
    return Layout(tensor=tensor, pipeline=pipeline, teams=started // size)


def start_processes(layout: Layout) -> int | None:
    """This very command in as many processes as a layout needs; returns the exit status, or None
    where this process goes on itself.
    """
    if layout.num_processes == 1 or "WORLD_SIZE" in os.environ:
        return None
    command = [sys.executable, "-m", "torch.distributed.run"]
    # a free port of torchrun's choice, so that several commands share a machine
    command += [f"--nproc-per-node={layout.num_processes}", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=127.0.0.1:0", "-m", "dct_vl", *sys.argv[1:]]
    return subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}).returncode


@dataclass(frozen=True, kw_only=True)
class Team:
    """This process's place, and what it shares with the others."""

    is_leader: bool
    #: leads the first team: prepares the output and shows progress
    is_first: bool
    #: of all teams; None where there is one process
    store: dist.Store | None
    layout: Layout
    _count: itertools.count[int] = field(default_factory=itertools.count)

    def publish(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Give the first leader's plan to all processes; the others' argument plays no part."""
        if self.store is None:
            return plan
        if self.is_first:
            self.store.set(_PLAN, orjson.dumps(plan).decode())
        self.store.wait([_PLAN], _PATIENCE)
        found: dict[str, Any] = orjson.loads(self.store.get(_PLAN))
        return found

    def claim(self) -> int:
        """A number from 0 on that no other team gets; for leaders."""
        return next(self._count) if self.store is None else self.store.add(_CLAIMS, 1) - 1

    def note_answers(self, number: int) -> int:
        """Add to the number of answers of all teams, and return it."""
        return number if self.store is None else self.store.add(_ANSWERS, number)

    def share(self, thing: Any) -> Any:
        """The leader's object on all ranks of the team; must be called by all of them."""
        if self.layout.tensor * self.layout.pipeline == 1:
            return thing
        from megatron.core import parallel_state

        group = parallel_state.get_model_parallel_group()
        box = [thing]
        dist.broadcast_object_list(box, src=min(dist.get_process_group_ranks(group)), group=group)
        return box[0]

    def finish(self) -> None:
        """Say that this leader's team is done; the first leader waits for the others."""
        if self.store is None:
            return
        self.store.add(_DONE, 1)
        while self.is_first and self.store.add(_DONE, 0) < self.layout.teams:
            time.sleep(0.2)


def start_team(layout: Layout) -> Team:
    """Join the processes that torchrun started; sets this process's GPU.

    Raises:
        ValueError: there are fewer GPUs than processes here.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"process {local} of this machine finds {torch.cuda.device_count()} GPUs: lower "
                "--workers, --tp or --pp"
            )
        torch.cuda.set_device(local)
    if layout.num_processes == 1:
        return Team(is_leader=True, is_first=True, store=None, layout=layout)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=_PATIENCE))
    is_leader = True
    if layout.tensor * layout.pipeline > 1:
        is_leader = _join_model(layout, store, rank, world_size)
    shared = dist.PrefixStore("generate", store)
    return Team(is_leader=is_leader, is_first=rank == 0, store=shared, layout=layout)


def _join_model(layout: Layout, store: dist.Store, rank: int, world_size: int) -> bool:
    """Megatron's groups; returns whether this is the first rank of its model."""
    from dct_vl.compat import activate

    activate()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("groups", store),
        rank=rank,
        world_size=world_size,
        timeout=_PATIENCE,
    )
    parallel_state.initialize_model_parallel(layout.tensor, layout.pipeline)
    model_parallel_cuda_manual_seed(0)
    group = parallel_state.get_model_parallel_group()
    return rank == min(dist.get_process_group_ranks(group))
