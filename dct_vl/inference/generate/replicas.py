"""Replica groups: the processes of one replica of the model; the groups share all requests."""

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

#: a group may decode long videos, or wait for another one's, without anything being wrong
_PATIENCE = timedelta(hours=6)
_CLAIMS, _ANSWERS, _DONE, _START = "claims", "answers", "groups_done", "start"


@dataclass(frozen=True, kw_only=True)
class ParallelSizes:
    """How a model and its replicas are spread over processes."""

    tensor: int = 1
    pipeline: int = 1
    replicas: int = 1

    @property
    def processes_each(self) -> int:
        return self.tensor * self.pipeline

    @property
    def num_processes(self) -> int:
        return self.processes_each * self.replicas


def parallel_sizes(
    tensor: int, pipeline: int, replicas: int | None, environ: Mapping[str, str] = os.environ
) -> ParallelSizes:
    """The sizes that were asked for, or as many replicas as torchrun's processes make.

    Raises:
        ValueError: torchrun's processes are no whole number of replicas, or not the number asked
            for.
    """
    if "WORLD_SIZE" not in environ:
        return ParallelSizes(tensor=tensor, pipeline=pipeline, replicas=replicas or 1)
    started, size = int(environ["WORLD_SIZE"]), tensor * pipeline
    if started % size or (replicas is not None and started != size * replicas):
        raise ValueError(
            f"torchrun started {started} processes; --tp {tensor} --pp {pipeline} needs "
            + (f"{size * replicas} for {replicas} workers" if replicas else f"a multiple of {size}")
        )
    return ParallelSizes(tensor=tensor, pipeline=pipeline, replicas=started // size)


def start_processes(sizes: ParallelSizes) -> int | None:
    """Start this very command in as many processes as it needs; returns the exit status, or None
    where this process goes on itself.
    """
    if sizes.num_processes == 1 or "WORLD_SIZE" in os.environ:
        return None
    command = [sys.executable, "-m", "torch.distributed.run"]
    # a free port of torchrun's choice, so that several commands share a machine
    command += [f"--nproc-per-node={sizes.num_processes}", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=127.0.0.1:0", "-m", "dct_vl", *sys.argv[1:]]
    return subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}).returncode


@dataclass(frozen=True, kw_only=True)
class ReplicaGroup:
    """This process's role in its group, and what the groups share."""

    is_leader: bool
    #: leads the first group: prepares the output and shows progress
    is_first: bool
    #: of all groups; None where there is one process
    store: dist.Store | None
    sizes: ParallelSizes
    _count: itertools.count[int] = field(default_factory=itertools.count)

    def publish(self, message: dict[str, Any]) -> dict[str, Any]:
        """Give the first leader's message to all processes; the others' argument plays no part."""
        if self.store is None:
            return message
        if self.is_first:
            self.store.set(_START, orjson.dumps(message).decode())
        self.store.wait([_START], _PATIENCE)
        found: dict[str, Any] = orjson.loads(self.store.get(_START))
        return found

    def claim(self) -> int:
        """A number from 0 on that no other group gets; for leaders."""
        return next(self._count) if self.store is None else self.store.add(_CLAIMS, 1) - 1

    def note_answers(self, number: int) -> int:
        """Add to the number of answers of all groups, and return it."""
        return number if self.store is None else self.store.add(_ANSWERS, number)

    def share(self, thing: Any) -> Any:
        """The leader's object on all ranks of the group; must be called by all of them."""
        if self.sizes.processes_each == 1:
            return thing
        from megatron.core import parallel_state

        group = parallel_state.get_model_parallel_group()
        box = [thing]
        dist.broadcast_object_list(box, src=min(dist.get_process_group_ranks(group)), group=group)
        return box[0]

    def finish(self) -> None:
        """Say that this leader's group is done; the first leader waits for the others."""
        if self.store is None:
            return
        self.store.add(_DONE, 1)
        while self.is_first and self.store.add(_DONE, 0) < self.sizes.replicas:
            time.sleep(0.2)


def join_replica_group(sizes: ParallelSizes) -> ReplicaGroup:
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
    if sizes.num_processes == 1:
        return ReplicaGroup(is_leader=True, is_first=True, store=None, sizes=sizes)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=_PATIENCE))
    is_leader = True
    if sizes.processes_each > 1:
        is_leader = _join_model(sizes, store, rank, world_size)
    shared = dist.PrefixStore("generate", store)
    return ReplicaGroup(is_leader=is_leader, is_first=rank == 0, store=shared, sizes=sizes)


def _join_model(sizes: ParallelSizes, store: dist.Store, rank: int, world_size: int) -> bool:
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
    parallel_state.initialize_model_parallel(sizes.tensor, sizes.pipeline)
    model_parallel_cuda_manual_seed(0)
    group = parallel_state.get_model_parallel_group()
    return rank == min(dist.get_process_group_ranks(group))
