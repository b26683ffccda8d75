"""A loader's position in the data, also for other numbers of ranks and loader processes.

Energon divides the shards among all loader processes of a job; each goes through its own part for
ever, and is one stream. Streams can change the rank that reads them. Their number cannot change:
what a stream has read of its part has no counterpart among parts of another size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron.energon.savable_loader import SavableDataLoaderState

from dct_vl.errors import ConfigError


def check_streams(
    *, ranks_before: int, workers_before: int, num_ranks: int, num_workers: int
) -> None:
    """Can the loaders of a checkpoint resume with other data-parallel sizes and data.num_workers?

    Raises:
        ConfigError: not without repeating or skipping samples.
    """
    if (ranks_before, workers_before) == (num_ranks, num_workers):
        return
    before = ranks_before * max(workers_before, 1)
    was = (
        f"the checkpoint's data was read by {ranks_before} data-parallel ranks × "
        f"data.num_workers={workers_before}"
    )
    now = f"this run has {num_ranks} × {num_workers}"
    if not workers_before:
        raise ConfigError(
            f"{was}, {now}: the place of a loader without processes has a meaning for it only; set "
            "both back"
        )
    if before == num_ranks * num_workers:
        return
    if before % num_ranks == 0:
        fix = f"set data.num_workers={before // num_ranks}"
    else:
        fits = [str(n) for n in range(1, before + 1) if before % n == 0]
        fix = f"{num_ranks} ranks cannot share {before} streams evenly: use {', '.join(fits)} ranks"
    raise ConfigError(
        f"{was} = {before} streams, {now}: each stream has its own part of the shards, so that "
        f"another number of them would repeat some samples and skip others; {fix}"
    )


def redistribute(
    states: Sequence[Any], *, num_ranks: int, num_workers: int
) -> list[SavableDataLoaderState]:
    """Energon's states, one a rank, for other numbers of ranks and loader processes with the same
    product.

    Streams keep their order, as in `energon checkpoint redist`. Every rank starts with its first
    one; where the old ranks were in the middle of a round, the streams meet in other steps than
    they would have, and each resumes at its very next sample.
    """
    streams = [stream for state in states for stream in state.worker_states]
    return [
        SavableDataLoaderState(
            worker_states=streams[rank * num_workers : (rank + 1) * num_workers],
            next_worker_id=0,
            micro_batch_size=states[0].micro_batch_size,
        )
        for rank in range(num_ranks)
    ]


def restore(loader: Any, states: Sequence[SavableDataLoaderState | None]) -> None:
    """Put a fresh loader where `states`, one a rank, left it.

    Energon 7.4.1 forgets, of a stream that delivers nothing between being restored and being saved
    again, the samples that it had read since its last inner checkpoint, and would repeat them.
    """
    loader.restore_state_global(list(states))
    state = states[loader.worker_config.rank]
    if state is None or not loader.num_workers:
        return
    for worker, stream in enumerate(state.worker_states):
        if stream.state is not None:
            last = stream.state.sample_index + stream.offset - 1
            loader._worker_sample_counters[worker] = last
