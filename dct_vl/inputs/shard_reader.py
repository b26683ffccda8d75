"""Read shards so that damage loses the samples at its place and no more."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any, NoReturn, Protocol

from megatron.energon import SkipSample
from megatron.energon.flavors.webdataset.itar_reader import ITarReader
from megatron.energon.flavors.webdataset.sample_loader import WebdatasetSampleLoaderDataset
from megatron.energon.flavors.webdataset.structs import FilteredSample

from dct_vl.inputs.cook import Stage
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
    for loader in sample_loaders(dataset):
        loader.join_readers = [
            ShardReader(reader, rejects) if isinstance(reader, ITarReader) else reader
            for reader in loader.join_readers
        ]
    return dataset


def sample_loaders(dataset: Any) -> Iterator[Any]:
    """Energon's innermost datasets, which hold the readers of shards."""
    if isinstance(dataset, WebdatasetSampleLoaderDataset):
        yield dataset
    for inner in getattr(dataset, "datasets", ()):
        yield from sample_loaders(inner)
