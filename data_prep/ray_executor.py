"""Run shard tasks on a Ray cluster. Needs the extra ``ray``.

Ray starts a task again when its worker or machine is lost. Every machine needs this project
installed and both folders at the same paths.
"""

import os
from collections.abc import Callable, Iterator, Sequence

from data_prep.executor import MAX_LOST_WORKERS, ExecutorError
from data_prep.shard_task import ShardRecord, ShardTask, Tick, make_shard

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise ExecutorError("--engine ray needs Ray; install it with `pip install '.[ray]'`") from error

#: Ray keeps at least this much shared memory for objects; records are all that passes through it.
_OBJECT_STORE_BYTES = 100 * 1024 * 1024


class RayExecutor:
    """The cluster that ``RAY_ADDRESS`` names, else one started here with ``workers`` processes."""

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def run(
        self, tasks: Sequence[ShardTask], on_tick: Callable[[Tick], None]
    ) -> Iterator[ShardRecord]:
        """Make every shard; progress is reported per shard."""
        self._connect()
        try:
            remote = ray.remote(num_cpus=1, max_retries=MAX_LOST_WORKERS)(make_shard)
            waiting = {remote.remote(task): task for task in tasks}
            while waiting:
                done, _ = ray.wait(list(waiting))
                for reference in done:
                    number = waiting.pop(reference).shard.number
                    record = _fetch(reference, number)
                    on_tick(
                        Tick(
                            images=record.images,
                            videos=record.videos,
                            source_bytes=record.source_bytes,
                            rejected=dict(record.rejected),
                        )
                    )
                    yield record
        finally:
            ray.shutdown()

    def _connect(self) -> None:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False)
        else:
            ray.init(
                num_cpus=self._workers,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=_OBJECT_STORE_BYTES,
            )


def _fetch(reference: "ray.ObjectRef", number: int) -> ShardRecord:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        # what the task itself raised: a full disk, for instance
        raise error.as_instanceof_cause() from error
    except RayError as error:
        raise ExecutorError(
            f"shard {number} was lost {MAX_LOST_WORKERS + 1} times ({type(error).__name__}): "
            "usually memory ran out; run again with fewer --workers, finished shards are kept"
        ) from error
