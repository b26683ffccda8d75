"""Read prepared shards so that damage loses the samples at its place and no more."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from megatron.energon import DefaultTaskEncoder, SkipSample, WorkerConfig, get_loader
from megatron.energon.flavors.webdataset.empty_dataset_error import EmptyDatasetError
from megatron.energon.flavors.webdataset.itar import ITarSamplePointer
from megatron.energon.flavors.webdataset.itar_reader import ITarReader
from megatron.energon.flavors.webdataset.sample_loader import WebdatasetSampleLoaderDataset
from megatron.energon.flavors.webdataset.structs import FilteredSample

from data_prep.schema import ChatRecord, SchemaError
from dct_vl.inputs.data_sets import COOKERS, load_sets
from dct_vl.inputs.samples import CrudeChat, DamagedSample, Stage, read_record
from dct_vl.inputs.shard_index import key_at

#: what tarfile and Energon raise where a header is damaged or a file ends early. Errors of the
#: storage are not among them: they pass, and another rank of the same model may not have met them
_DAMAGE = (ValueError, tarfile.TarError)

#: called with the key of a sample that cannot be used, and what is wrong with it
OnFault = Callable[[str, ValueError], None]


class DamageLog(Protocol):
    """Hears what becomes of samples, as a `RejectLog` does."""

    def accept(self, stage: Stage) -> None:
        """A sample was read."""

    def reject(self, key: str, reason: str, detail: str, *, stage: Stage, file: str) -> NoReturn:
        """A sample could not be read; raises SkipSample where the others are to be read still."""


class ShardReader:
    """Energon's reader of tar shards, in which damaged samples count as rejected.

    Energon 7.4.1 ends training at the first of them, and at the joint of tars that were put
    together with ``cat``. It also keeps the tar headers of all samples
    that it has read, a kilobyte each, for as long as a shard is open.
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
            sample = self._read(index)
        except _DAMAGE as error:
            self._reject(index, error)
            return None
        finally:
            for tar in self._reader.itar_files_cache.values():
                tar.members.clear()
        self._rejects.accept("reading")
        return sample

    def _read(self, index: int) -> FilteredSample | None:
        try:
            return self._reader[index]
        except _DAMAGE:
            pointer = self._before_padding(index)
            if pointer is None:
                raise
            return self._reader._get_item_by_sample_pointer(pointer, index)

    def _before_padding(self, index: int) -> ITarSamplePointer | None:
        """Where a sample is that ends a tar to which another one was joined, else None.

        The index has it up to the next sample, with the zeros between the two tars.
        """
        pointer = self._reader._get_itar_sample_pointer(index)
        stop = pointer.byte_offset + pointer.byte_size
        with self._reader._open_itarfile(pointer.tar_file_id) as tar:
            tar.offset = pointer.byte_offset
            while tar.offset < stop and tar.next() is not None:
                pass
            size = tar.offset - pointer.byte_offset
            tar.fileobj.seek(tar.offset)
            padding = tar.fileobj.read(max(0, stop - tar.offset))
        if not size or not padding or padding.strip(b"\0"):
            return None
        return ITarSamplePointer(
            tar_file_id=pointer.tar_file_id, byte_offset=pointer.byte_offset, byte_size=size
        )

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
    """A freshly built dataset of Energon's, changed in place: its shards are read through
    `ShardReader`, and `rejects` is told of damaged samples.
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


class _CookOnly(DefaultTaskEncoder):
    cookers = COOKERS
    decoder = None


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One sample."""

    key: str
    record: ChatRecord
    images: tuple[bytes, ...]
    videos: tuple[bytes, ...] = ()


def read_split(
    path: str, split: str, limit: int | None = None, *, on_fault: OnFault | None = None
) -> Iterator[HeldOut]:
    """Samples of a split in the order of its shards, at most `limit`.

    Args:
        limit: None for all of it; what a damaged shard does not give back does not count.
        on_fault: told of samples in damaged places of their shards, and of those that do not follow
            the schema; without this such a sample is an error.

    Raises:
        ValueError: the split has no sample, or one that is damaged or does not follow the schema.
    """
    try:
        config = WorkerConfig(rank=0, world_size=1, num_workers=0)
        dataset = _CookOnly().build_val_datasets(
            datasets=load_sets(path, split, config).datasets, worker_config=config, batch_size=None
        )
    except (EmptyDatasetError, AssertionError) as error:  # no shard, or no such split
        raise ValueError(
            f"the {split} split of {path} has no sample ({error}): name another one, or prepare "
            "the shards again with --split"
        ) from error
    damage = _Damage(path, on_fault)
    count = 0
    for sample in get_loader(pass_over_damage(dataset, damage)):
        assert isinstance(sample, CrudeChat)
        count += 1
        try:
            record = read_record(sample)
        except SchemaError as error:
            if on_fault is None:
                raise SchemaError(f"{path}, sample {sample.__key__}: {error}") from error
            on_fault(sample.__key__, error)
        else:
            yield HeldOut(
                key=sample.__key__, record=record, images=sample.images, videos=sample.videos
            )
        if count == limit:
            return
    if not count:
        lost = f" that its shards give back: {damage.count} are damaged" if damage.count else ""
        raise ValueError(f"the {split} split of {path} has no sample{lost}")


class _Damage:
    """A `DamageLog` of a split that is read for its samples."""

    def __init__(self, path: str, on_fault: OnFault | None) -> None:
        self.path = path
        self.on_fault = on_fault
        self.count = 0

    def accept(self, stage: Stage) -> None:
        """A sample was read."""

    def reject(self, key: str, reason: str, detail: str, *, stage: Stage, file: str) -> NoReturn:
        if self.on_fault is None:
            raise DamagedSample(f"{self.path}, sample {key}: {file} is damaged ({detail})", file)
        self.count += 1
        self.on_fault(key, DamagedSample(detail, file))
        raise SkipSample(key)
