"""Samples of a split of prepared shards, one after the other, as they lie there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, get_loader, get_val_dataset

from data_prep.schema import ChatRecord, SchemaError, parse_record
from training.data.samples import CrudeChat
from training.data.task_encoder import cook_chat


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
    on_fault: Callable[[str, SchemaError], None] | None = None,
) -> Iterator[HeldOut]:
    """Samples of a split in the order of its shards, at most `limit`.

    Args:
        path: prepared shards.
        split: name of the split.
        limit: None for all of it.
        on_fault: called with the key of a sample that does not follow the schema, and what is wrong
            with it; without this such a sample is an error.

    Raises:
        ValueError: the split has no sample, or one that does not follow the schema.
    """
    dataset = get_val_dataset(
        path,
        batch_size=None,
        task_encoder=_CookOnly(),
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        split_part=split,
    )
    count = 0
    for sample in get_loader(dataset):
        assert isinstance(sample, CrudeChat)
        count += 1
        try:
            record = _record(sample)
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
        raise ValueError(f"the {split} split of {path} has no sample")


def _record(sample: CrudeChat) -> ChatRecord:
    if sample.fault:
        raise SchemaError(sample.fault)
    return parse_record(sample.record)
