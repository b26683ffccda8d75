"""Loader processes: each gets samples, and one that hangs or dies is named with its sample."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator
from functools import partial
from queue import Empty
from typing import Any

from megatron.energon import SavableDataLoader, WorkerConfig
from torch.utils.data import get_worker_info

from dct_vl.errors import ConfigError
from dct_vl.inputs.shard_reader import sample_loaders

#: bytes of a loader process on the board; longer keys are cut
_SLOT = 256
_IF_SLOW = "If the storage is that slow, raise data.worker_timeout_s"


class LoaderProcessError(RuntimeError):
    """A loader process delivers nothing any more."""


class WorkerBoard:
    """The sample that each loader process is at, readable from the trainer.

    Memory that forked processes share; a note costs a microsecond.

    Args:
        num_workers: loader processes; 0 is one, the trainer itself.
    """

    def __init__(self, num_workers: int) -> None:
        self._memory = mmap.mmap(-1, max(num_workers, 1) * _SLOT)

    def note(self, what: str) -> None:
        """Say what this process does now, e.g. "decoding KEY"."""
        worker = get_worker_info()
        start = worker.id * _SLOT if worker else 0
        line = f"{time.time():.0f} {what}".encode()[:_SLOT]
        self._memory[start : start + _SLOT] = line.ljust(_SLOT, b"\0")

    def read(self, worker_id: int) -> tuple[str, float] | None:
        """What a process said last and how many seconds ago; None where it said nothing."""
        slot = self._memory[worker_id * _SLOT : (worker_id + 1) * _SLOT].rstrip(b"\0")
        since, _, what = slot.decode(errors="replace").partition(" ")
        return (what, time.time() - float(since)) if since else None


def watch(loader: SavableDataLoader, board: WorkerBoard, timeout_s: float) -> Iterator[Any]:
    """The batches of a loader, for as long as its processes deliver them.

    Args:
        timeout_s: seconds that the trainer waits for a batch; 0 waits for ever. A loader without
            processes is not watched.

    Raises:
        LoaderProcessError: a process delivered nothing for so long, or ended.
    """
    loader.timeout = timeout_s if loader.num_workers else 0
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            # errors of its own that a process passes on name it too, without its pid
            timed_out = str(error).startswith("DataLoader timed out")
            if not (timed_out or str(error).startswith("DataLoader worker (pid")):
                raise
            iterator: Any = loader._iterator
            # whose turn it is; torch keeps this to itself, hence the private names
            where = _describe(loader, board, iterator._task_info[iterator._rcvd_idx][0])
            if timed_out:
                raise LoaderProcessError(
                    f"no batch for {timeout_s:g} s from {where}. {_IF_SLOW}"
                ) from None
            raise LoaderProcessError(
                f"{error} The trainer was waiting for {where}. Killed processes often ran out of "
                "memory: lower data.num_workers, data.shuffle_buffer_size or "
                "data.packing_buffer_size"
            ) from None
        yield batch


class _Answers:
    """What a loader process answers when it is asked for its place, with patience that ends."""

    def __init__(self, queue: Any, where: Callable[[], str], limit: float) -> None:
        self._queue, self._where, self._limit = queue, where, limit

    def get(self) -> Any:
        try:
            return self._queue.get(timeout=self._limit)
        except Empty:
            raise LoaderProcessError(
                f"no checkpoint: for {self._limit:g} s its place in the data was asked of "
                f"{self._where()}. {_IF_SLOW}"
            ) from None


def limit_answers(loader: SavableDataLoader, board: WorkerBoard, timeout_s: float) -> None:
    """Have the saving of a loader's place end where a process hangs, too.

    Energon waits for ever for a process that is asked for its place, which answers between two
    batches.

    Args:
        timeout_s: after which a `LoaderProcessError` names the process; 0 waits for ever.
    """
    if timeout_s:
        loader.result_queues = [
            _Answers(queue, partial(_describe, loader, board, worker_id), timeout_s)
            for worker_id, queue in enumerate(loader.result_queues)
        ]


def _describe(loader: SavableDataLoader, board: WorkerBoard, worker_id: int) -> str:
    iterator: Any = loader._iterator
    noted = board.read(worker_id)
    last = f"{noted[0]}, {noted[1]:.0f} s ago" if noted else "nothing yet"
    return (
        f"loader process {worker_id} of {loader.num_workers} "
        f"(pid {iterator._workers[worker_id].pid}); the last it said: {last}"
    )


def check_shares(dataset: Any, path: str, config: WorkerConfig) -> None:
    """Does every loader process of this rank have a sample, of every dataset that is mixed?

    Raises:
        ConfigError: one has none. Energon divides samples among all processes, and a process that
            has none would only find out when it starts.
    """
    for loader in sample_loaders(dataset):
        held = [loader.len_worker(number) for number in range(max(config.num_workers, 1))]
        if 0 in held:
            streams = len(held) * config.world_size
            raise ConfigError(
                f"{path} has too few samples to train on: loader process {held.index(0)} of rank "
                f"{config.rank} has none, as {config.world_size} data-parallel ranks × "
                f"data.num_workers={config.num_workers} share the samples of each dataset among "
                f"{streams}: lower data.num_workers, or add samples"
            )
