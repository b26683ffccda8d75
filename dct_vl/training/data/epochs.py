"""The training set: every loader process delivers each of its samples once before any twice.

Energon repeats a set below its buffers, so that a buffer holds the end of one epoch and the start
of the next, and one larger than a loader process's share holds several at once. Here the buffers
lie inside what is repeated, and are empty at the end of an epoch:

    batches ← repeat ← [epoch: packs ← planned ← blend ← [epoch: shuffle buffer ← shards]]

Sets that are blended by weight end at different times and have no epoch in common: each keeps its
own epochs apart, and packs are chosen from whatever comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.energon import (
    BatchDataset,
    BlendDataset,
    DefaultTaskEncoder,
    PackingDataset,
    RepeatDataset,
    SavableDataset,
    ShuffleBufferDataset,
    WorkerConfig,
)
from megatron.energon.metadataset.loader_interface import DatasetBlendMode, LoadedDataset
from megatron.energon.task_encoder.base import get_stateless
from megatron.energon.wrappers.base import BaseWrapperDataset

from dct_vl.inputs.data_sets import load_sets
from dct_vl.inputs.shard_reader import sample_loaders


class EpochSource(BaseWrapperDataset[Any, Any]):
    """Reads a set once, and knows that it has been read while the buffers behind it are emptied,
    also where the loader is saved and restored meanwhile.
    """

    is_read: bool
    _savable_fields = ("is_read",)

    def __init__(self, dataset: SavableDataset[Any]) -> None:
        super().__init__(dataset, worker_config=dataset.worker_config)
        self.reset_state_own()

    def reset_state_own(self) -> None:
        self.is_read = False

    def len_worker(self, worker_idx: int | None = None) -> int:
        return self.dataset.len_worker(worker_idx)

    def __iter__(self) -> Iterator[Any]:
        if not self.is_read:
            yield from self.dataset
            self.is_read = True

    def config(self) -> dict[str, Any]:
        return {"type": type(self).__qualname__, "dataset": self.dataset.config()}


class WholeEpoch(BaseWrapperDataset[Any, Any]):
    """One epoch of a set, to the last sample of its buffers.

    Args:
        dataset: reads from `source` through buffers.
    """

    def __init__(self, dataset: SavableDataset[Any], source: EpochSource) -> None:
        super().__init__(dataset, worker_config=dataset.worker_config)
        self.source = source

    def reset_state_own(self) -> None:
        """The state is the source's."""

    def len_worker(self, worker_idx: int | None = None) -> int:
        return self.dataset.len_worker(worker_idx)

    def __iter__(self) -> Iterator[Any]:
        yield from self.dataset
        self.source.is_read = False

    def config(self) -> dict[str, Any]:
        return {"type": type(self).__qualname__, "dataset": self.dataset.config()}


def train_dataset(
    path: str,
    encoder: DefaultTaskEncoder[Any, Any, Any, Any],
    config: WorkerConfig,
    *,
    batch_size: int,
    packing_buffer_size: int | None,
    shuffle_buffer_size: int,
    max_samples_per_sequence: int | None,
    mix_epochs: bool,
) -> SavableDataset[Any]:
    """Endless batches of the `train` split.

    Args:
        packing_buffer_size: samples that packs are chosen from; None for one sample a row.
        shuffle_buffer_size: samples, of all sets of a blend together; at most 1 keeps the order.
        mix_epochs: as Energon does it.
    """
    loaded = load_sets(
        path, "train", config, training=True, max_samples_per_sequence=max_samples_per_sequence
    )
    if mix_epochs:
        return encoder.build_train_datasets(
            datasets=loaded.datasets,
            blend_mode=loaded.blend_mode,
            worker_config=config,
            batch_size=batch_size,
            packing_buffer_size=packing_buffer_size,
            shuffle_buffer_size=shuffle_buffer_size,
        )
    by_weight = loaded.blend_mode == DatasetBlendMode.DATASET_WEIGHT
    weights = [_weight(one, by_weight) for one in loaded.datasets]
    streams = max(config.num_workers, 1) * config.world_size
    sets: list[tuple[SavableDataset[Any], float]] = []
    before = 0
    for one, weight in zip(loaded.datasets, weights, strict=True):
        # the set's odd samples go to the loader processes after those that got the last set's
        source = EpochSource(encoder._load_dataset(one, before % streams, worker_config=config))
        before += len(one.dataset)
        room = round(shuffle_buffer_size * weight / sum(weights))
        buffered = (
            ShuffleBufferDataset(source, size=room, worker_config=config) if room > 1 else source
        )
        epoch: SavableDataset[Any] = WholeEpoch(buffered, source)
        times = None if by_weight else one.repetitions or 1
        if times != 1:
            epoch = RepeatDataset(epoch, repeats=times, worker_config=config)
        sets.append((epoch, weight))
    blended = BlendDataset(*sets, worker_config=config) if len(sets) > 1 else sets[0][0]
    source = EpochSource(blended)
    rows = encoder.build_batch(
        encoder.build_encode_sample(source, worker_config=config),
        batch_size=None,
        packing_buffer_size=packing_buffer_size,
        worker_config=config,
    )
    if not by_weight:
        rows = RepeatDataset(WholeEpoch(rows, source), worker_config=config)
    return BatchDataset(
        rows,
        batch_size=batch_size,
        batcher=encoder.batch,
        batcher_stateless=get_stateless(encoder.batch),
        worker_config=config,
    )


def _weight(one: LoadedDataset, by_weight: bool) -> float:
    if by_weight:
        return 1.0 if one.weight is None else float(one.weight)
    return len(one.dataset) * (one.repetitions or 1)


def mixed_epochs(dataset: Any, config: WorkerConfig) -> str | None:
    """What is to be said where a buffer draws from several epochs and is larger than a loader
    process's share, so that it holds samples twice; None where none does.

    Args:
        dataset: of `train_dataset`.
    """
    streams = max(config.num_workers, 1) * config.world_size
    share = sum(len(loader.join_readers[0]) // streams for loader in sample_loaders(dataset))
    found = {name: size for name, size in _mixing_buffers(dataset) if size > share}
    if not found:
        return None
    fix = "set data.mix_epochs=false"
    if "data.shuffle_buffer_size" not in found:
        fix = f"{share} at most keeps them apart"
    named = " and ".join(f"{name}={size}" for name, size in found.items())
    return (
        f"{named} {'are' if len(found) > 1 else 'is'} more than the {share} samples of a loader "
        f"process (of {streams}): several epochs are mixed, and samples come again before others "
        f"have come once; {fix}"
    )


def _mixing_buffers(dataset: Any) -> Iterator[tuple[str, int]]:
    """Key and size of every buffer that does not lie inside an epoch."""
    if isinstance(dataset, WholeEpoch):
        return
    if isinstance(dataset, PackingDataset):
        yield "data.packing_buffer_size", dataset.buffer_size
    if isinstance(dataset, ShuffleBufferDataset):
        yield "data.shuffle_buffer_size", dataset.size
    for inner in getattr(dataset, "datasets", ()):
        yield from _mixing_buffers(inner)
