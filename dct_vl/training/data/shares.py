"""Does every loader process have enough samples?"""

from __future__ import annotations

from typing import Any

from megatron.energon import WorkerConfig

from dct_vl.inputs.shard_reader import sample_loaders
from dct_vl.runs.config.overrides import ConfigError


def check_shares(dataset: Any, path: str, config: WorkerConfig) -> None:
    """Does every loader process of this rank have a sample, of every dataset that is mixed?

    Args:
        dataset: of the training split.
        path: that it was built from, for the message.
        config: ranks and loader processes.

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


def mixed_epochs(
    dataset: Any, config: WorkerConfig, *, packing_buffer_size: int, shuffle_buffer_size: int
) -> str | None:
    """What is to be said where packs are chosen from more samples than a loader process has, some
    of them twice; None where they are not.

    Args:
        dataset: of the training split, packed.
        config: ranks and loader processes.
        packing_buffer_size: samples that packs are chosen from.
        shuffle_buffer_size: samples that the next one is drawn from before; 0 for none.
    """
    streams = max(config.num_workers, 1) * config.world_size
    share = sum(len(loader.join_readers[0]) // streams for loader in sample_loaders(dataset))
    if packing_buffer_size <= share:
        return None
    shuffled = (
        f"; data.shuffle_buffer_size={shuffle_buffer_size} mixes them likewise"
        if shuffle_buffer_size > share
        else ""
    )
    return (
        f"data.packing_buffer_size={packing_buffer_size} is more than the {share} samples of a "
        f"loader process (of {streams}): packs are chosen from several epochs at once, and may "
        f"hold a sample twice. {share} at most keeps them apart{shuffled}"
    )
