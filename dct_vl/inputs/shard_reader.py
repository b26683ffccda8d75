"""Reading shards: damage loses the samples at its place and no more, and everyone has a share."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any, NoReturn, Protocol

from megatron.energon import SkipSample, WorkerConfig
from megatron.energon.flavors.webdataset.itar_reader import ITarReader
from megatron.energon.flavors.webdataset.sample_loader import WebdatasetSampleLoaderDataset
from megatron.energon.flavors.webdataset.structs import FilteredSample

from dct_vl.errors import ConfigError
from dct_vl.inputs.rejects import Stage
from dct_vl.inputs.shard_index import key_at

#: what tarfile and Energon raise where a header is damaged or a file ends early. Errors of the
#: storage are not among them: they pass, and another rank of the same model may not have met them
_DAMAGE = (ValueError, tarfile.TarError)


class DamageLog(Protocol):
    """Hears what becomes of samples, as a `RejectLog` does."""

    def accept(self, stage: Stage) -> None:
        """A sample was read."""

    def reject(self, key: str, reason: str, detail: str, *, stage: Stage, file: str) -> NoReturn:
        """A sample could not be read; raises SkipSample where the others are to be read still."""


class ShardReader:
    """Energon's reader of tar shards, in which damaged samples count as rejected.

    Energon 7.4.1 ends training at the first of them. It also keeps the tar headers of all samples
    that it has read, a kilobyte each, for as long as a shard is open.

    Args:
        reader: Energon's.
        rejects: told of damaged samples.
    """

    def __init__(self, reader: ITarReader[int], rejects: DamageLog) -> None:
        self._reader = reader
        self._rejects = rejects

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> FilteredSample | None:
        """The sample, or None, which Energon passes over.

        Raises:
            FatalSampleError: too many damaged samples in a row; see `RejectLog`.
            OSError: the storage fails, or the shard is not there.
        """
        try:
            sample = self._reader[index]
        except _DAMAGE as error:
            self._reject(index, error)
            return None
        finally:
            for tar in self._reader.itar_files_cache.values():
                tar.members.clear()
        self._rejects.accept("reading")
        return sample

    def _reject(self, index: int, error: Exception) -> None:
        pointer = self._reader._get_itar_sample_pointer(index)
        name, folder = self._reader.tar_filenames[pointer.tar_file_id], self._reader.base_path
        place = f"byte {pointer.byte_offset}"
        key = key_at(str(folder), name, pointer.byte_offset) or f"{name} at {place}"
        file = f"{folder}/{name}"
        try:
            self._rejects.reject(
                key, "damaged_shard", f"{error}; {place}", stage="reading", file=file
            )
        except SkipSample:
            return


def pass_over_damage(dataset: Any, rejects: DamageLog) -> Any:
    """A dataset of Energon's, its shards read through `ShardReader`.

    Args:
        dataset: freshly built; changed in place.
        rejects: told of damaged samples.
    """
    for loader in _sample_loaders(dataset):
        loader.join_readers = [
            ShardReader(reader, rejects) if isinstance(reader, ITarReader) else reader
            for reader in loader.join_readers
        ]
    return dataset


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
    for loader in _sample_loaders(dataset):
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
    share = sum(len(loader.join_readers[0]) // streams for loader in _sample_loaders(dataset))
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


def _sample_loaders(dataset: Any) -> Iterator[Any]:
    if isinstance(dataset, WebdatasetSampleLoaderDataset):
        yield dataset
    for inner in getattr(dataset, "datasets", ()):
        yield from _sample_loaders(inner)
