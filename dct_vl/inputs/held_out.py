"""Samples of a split of prepared shards, one after the other, as they lie there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    SkipSample,
    WorkerConfig,
    get_loader,
    get_val_dataset,
)
from megatron.energon.flavors.webdataset.empty_dataset_error import EmptyDatasetError

from data_prep.schema import ChatRecord, SchemaError
from dct_vl.inputs.cook import DamagedSample, Stage, cook_chat, read_record
from dct_vl.inputs.samples import CrudeChat
from dct_vl.inputs.shard_reader import pass_over_damage

#: called with the key of a sample that cannot be used, and what is wrong with it
OnFault = Callable[[str, ValueError], None]


class _CookOnly(DefaultTaskEncoder):
    cookers = [Cooker(cook_chat)]  # noqa: RUF012
    decoder = None


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One sample."""

    key: str
    record: ChatRecord
    images: tuple[bytes, ...]
    videos: tuple[bytes, ...] = ()


def read_split(
    path: str,
    split: str,
    limit: int | None = None,
    *,
    on_fault: OnFault | None = None,
) -> Iterator[HeldOut]:
    """Samples of a split in the order of its shards, at most `limit`.

    Args:
        path: prepared shards.
        split: name of the split.
        limit: None for all of it; what a damaged shard does not give back does not count.
        on_fault: told of samples in damaged places of their shards, and of those that do not follow
            the schema; without this such a sample is an error.

    Raises:
        ValueError: the split has no sample, or one that is damaged or does not follow the schema.
    """
    try:
        dataset = get_val_dataset(
            path,
            batch_size=None,
            task_encoder=_CookOnly(),
            worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
            split_part=split,
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
    """Hears of damaged samples; see `dct_vl.inputs.shard_reader.DamageLog`."""

    def __init__(self, path: str, on_fault: OnFault | None) -> None:
        self.path = path
        self.on_fault = on_fault
        self.count = 0

    def accept(self, stage: Stage) -> None:
        """A sample was read."""

    def reject(self, key: str, reason: str, detail: str, *, stage: Stage, file: str) -> NoReturn:
        """A sample could not be read."""
        if self.on_fault is None:
            raise DamagedSample(f"{self.path}, sample {key}: {file} is damaged ({detail})", file)
        self.count += 1
        self.on_fault(key, DamagedSample(detail, file))
        raise SkipSample(key)
