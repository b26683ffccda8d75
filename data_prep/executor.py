"""Make the shards, in this process or in a pool. All executors give the same bytes."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, connection, get_context, parent_process
from typing import Protocol

from data_prep.shard_task import ShardRecord, ShardTask, Tick, make_shard

#: How often shards are handed out again after a worker died (killed for memory, for instance).
MAX_LOST_WORKERS = 3


class Executor(Protocol):
    """Makes shards; ``--engine`` and ``--workers`` choose one."""

    def run(
        self, tasks: Sequence[ShardTask], on_tick: Callable[[Tick], None]
    ) -> Iterator[ShardRecord]:
        """Make every shard, yielding records as they are finished, in any order."""
        ...


class ExecutorError(RuntimeError):
    """The executor could not finish; the message says what to do."""


class InProcessExecutor:
    """Makes one shard after the other in this process."""

    def run(
        self, tasks: Sequence[ShardTask], on_tick: Callable[[Tick], None]
    ) -> Iterator[ShardRecord]:
        for task in tasks:
            yield make_shard(task, on_tick)


class ProcessExecutor:
    """Makes shards in a pool of processes on this machine."""

    def __init__(self, workers: int) -> None:
        if workers < 2:
            raise ValueError(f"{workers} workers; expected at least 2 (else InProcessExecutor)")
        self._workers = workers

    def run(
        self, tasks: Sequence[ShardTask], on_tick: Callable[[Tick], None]
    ) -> Iterator[ShardRecord]:
        waiting = {task.shard.number: task for task in tasks}
        for _ in range(MAX_LOST_WORKERS):
            try:
                for record in self._run_pool(list(waiting.values()), on_tick):
                    del waiting[record.number]
                    yield record
                return
            except BrokenProcessPool:
                continue
        raise ExecutorError(
            f"workers died {MAX_LOST_WORKERS} times, with {len(waiting)} shards to go (the next is "
            f"{min(waiting)}): usually memory ran out; run again with fewer --workers, finished "
            "shards are kept"
        )

    def _run_pool(
        self, tasks: list[ShardTask], on_tick: Callable[[Tick], None]
    ) -> Iterator[ShardRecord]:
        # spawn: forking a process that has threads can leave locks held for ever
        context = get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        listener = threading.Thread(target=_listen, args=(receiver, on_tick), daemon=True)
        listener.start()
        pool = ProcessPoolExecutor(
            min(self._workers, len(tasks)), context, initializer=_start_worker, initargs=(sender,)
        )
        others = active_children()
        with _workers_ignore_ctrl_c():
            futures = [pool.submit(_make_reported_shard, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            # after a failure or Ctrl-C, do not wait for shards that would be finished in minutes
            for worker in active_children():
                if worker not in others:
                    worker.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            sender.close()  # the last of the senders: ends the listener
            listener.join()


@contextmanager
def _workers_ignore_ctrl_c() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal; the parent ends its workers, quietly.

    A process inherits that a signal is ignored from the one that starts it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change it, and only it is interrupted
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


#: Set once in every worker. All workers write to one pipe without a lock, which a worker that is
#: killed would hold for ever: messages under PIPE_BUF (4,096 bytes) are written whole by the
#: kernel, and a tick has a few hundred.
_sender: "connection.Connection | None" = None


def _start_worker(sender: "connection.Connection") -> None:
    global _sender
    _sender = sender
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers, and they would go on writing."""
    parent = parent_process()
    assert parent is not None, "runs in workers only"
    connection.wait([parent.sentinel])
    os._exit(1)


def _make_reported_shard(task: ShardTask) -> ShardRecord:
    assert _sender is not None, "the pool's initializer ran"
    return make_shard(task, _sender.send)


def _listen(receiver: "connection.Connection", on_tick: Callable[[Tick], None]) -> None:
    while True:
        try:
            tick = receiver.recv()
        except EOFError:
            return
        on_tick(tick)
