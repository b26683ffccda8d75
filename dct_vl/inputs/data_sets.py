"""The sets of samples behind a data path: shards, a metadataset of several, or a JSONL file."""

from __future__ import annotations

from typing import Any

from megatron.energon import Cooker, WorkerConfig, load_dataset
from megatron.energon.flavors.jsonl import CrudeJsonlDatasetFactory
from megatron.energon.flavors.webdataset.empty_dataset_error import EmptyDatasetError
from megatron.energon.metadataset.loader_interface import LoadedDataset, LoadedDatasetList

from data_prep.remote import energon_url
from dct_vl.inputs.jsonl import ChatLines, cook_line, is_jsonl
from dct_vl.inputs.samples import cook_chat

_LINES = {"entries": "lines"}
#: of every task encoder that reads conversations
COOKERS = [Cooker(cook_line, has_subflavors=_LINES), Cooker(cook_chat)]


def load_sets(
    path: str, split: str, config: WorkerConfig, *, training: bool = False, **options: Any
) -> LoadedDatasetList:
    """The sets that a split is made of; a JSONL file is one set, whatever the split is called.

    Args:
        training: shuffled, as options of Energon's `get_datasets` say.

    Raises:
        EmptyDatasetError, AssertionError, ValueError: Energon's, where there is no such split.
    """
    if is_jsonl(path):
        lines = ChatLines(path, training=training, worker_config=config, **options)
        loaded = LoadedDatasetList(datasets=[LoadedDataset(dataset=lines)])
    else:
        loaded = load_dataset(energon_url(path)).get_datasets(
            training=training, split_part=split, worker_config=config, decoder=None, **options
        )
    for one in loaded.datasets:
        if isinstance(one.dataset, CrudeJsonlDatasetFactory):
            one.dataset.subflavors = {**(one.dataset.subflavors or {}), **_LINES}
    return loaded


def num_samples(path: str, split: str) -> int:
    """Samples of a split, 0 where there is none."""
    config = WorkerConfig(rank=0, world_size=1, num_workers=0)
    try:
        return sum(len(one.dataset) for one in load_sets(path, split, config).datasets)
    except (EmptyDatasetError, AssertionError):
        return 0
