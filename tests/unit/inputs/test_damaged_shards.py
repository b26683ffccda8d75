"""One bad sample never ends training: it is left out, and listed with its shard and its key."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import islice

import orjson
import pytest

from dct_vl.errors import ConfigError
from dct_vl.inputs.shard_index import key_at, keys_by_split
from dct_vl.inputs.shard_reader import ShardReader, sample_loaders


class Forgetful:
    """A chat tokenizer with a defect that one conversation brings out."""

    def __init__(self, whole, word):
        self.whole = whole
        self.word = word
        self.pad_ids = whole.pad_ids

    def tokenize(self, turns, num_images, num_videos=0):
        if any(self.word in turn.text for turn in turns):
            raise RuntimeError("nobody thought of this")
        return self.whole.tokenize(turns, num_images, num_videos)


@pytest.fixture
def copied(shards, tmp_path):
    """The shared shards somewhere else, to be damaged."""
    return shutil.copytree(shards, tmp_path / "copied")


@pytest.fixture
def make_data(tiny_model, tmp_path):
    from dct_vl.inference.loading import start_single_process

    start_single_process()

    from dct_vl.runs.config.compose import compose_config
    from dct_vl.training.build import build_data

    def make(path, *overrides):
        run = compose_config(
            [
                *(f"data.path={path}", f"model.path={tiny_model}", f"log_dir={tmp_path}"),
                *("tokenizer=dct28_420", "experiment_name=run", "data.num_workers=0"),
                *("trainer.micro_batch_size=1", "data.shuffle_buffer_size=10", *overrides),
            ]
        )
        return build_data(run)

    return make


def listed(folder):
    """The rejects of a run."""
    lines = [line for file in folder.iterdir() for line in file.read_bytes().splitlines()]
    return [orjson.loads(line) for line in lines]


def members(shard):
    with tarfile.open(shard) as tar:
        return tar.getmembers()


def damage(shard):
    """Make a header in the middle unreadable; the key of its sample."""
    hit = members(shard)[4]
    with open(shard, "r+b") as file:
        file.seek(hit.offset)
        file.write(b"\xff" * 512)
    return hit.name.partition(".")[0]


@pytest.mark.parametrize("overrides", [(), ("data.packing=true", "data.packing_buffer_size=8")])
def test_a_damaged_header_loses_its_sample_alone(make_data, copied, tmp_path, overrides):
    shard = copied / "pretrain-000001.tar"
    lost = damage(shard)
    expected = keys_by_split(copied)["train"]
    assert lost in expected
    seen = set()
    for batch in islice(make_data(copied, *overrides).train_dataloader(), 500):
        seen |= set(batch.sample_keys)
        if seen == expected - {lost}:
            break
    assert seen == expected - {lost}
    entry = listed(tmp_path / "run" / "rejects")[0]
    assert entry["key"] == lost
    assert entry["file"] == str(shard)
    assert entry["reason"] == "damaged_shard"
    assert entry["next"] == "copy the shard again, or prepare it again"


def test_validation_passes_over_damage_too(make_data, copied, tmp_path):
    lost = damage(copied / "pretrain-000008.tar")
    expected = keys_by_split(copied)["val"] - {lost}
    batches = islice(make_data(copied).val_dataloader(), 2 * len(expected))
    seen = Counter(key for batch in batches for key in batch.sample_keys)
    assert seen == dict.fromkeys(expected, 2)
    assert {entry["key"] for entry in listed(tmp_path / "run" / "rejects_val")} == {lost}


def test_a_shard_that_breaks_off_loses_its_end(make_data, copied, tmp_path):
    shard = copied / "pretrain-000003.tar"
    found = members(shard)
    os.truncate(shard, found[7].offset + 600)
    list(islice(make_data(copied).train_dataloader(), 200))
    lost = {entry["key"] for entry in listed(tmp_path / "run" / "rejects")}
    assert lost == {member.name.partition(".")[0] for member in found[7:]}


def test_a_shard_that_is_not_there_ends_training_by_name(make_data, copied):
    (copied / "pretrain-000002.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"pretrain-000002\.tar"):
        list(islice(make_data(copied).train_dataloader(), 200))


def test_an_error_that_nobody_foresaw_is_listed_too(make_data, shards, tmp_path):
    data = make_data(shards)
    inputs = data.task_encoder.inputs
    data.task_encoder.inputs = replace(inputs, chat=Forgetful(inputs.chat, "bar"))
    assert len(list(islice(data.train_dataloader(), 100))) == 100
    found = listed(tmp_path / "run" / "rejects")
    assert found
    for entry in found:
        assert entry["reason"] == "error"
        assert "RuntimeError: nobody thought of this" in entry["detail"]
        assert "test_damaged_shards.py" in entry["detail"]
        assert entry["key"] in keys_by_split(shards)["train"]
        assert os.path.isfile(entry["file"])


def test_headers_that_were_read_do_not_pile_up(make_data, shards):
    data = make_data(shards)
    batches = iter(data.train_dataloader())
    list(islice(batches, 200))
    readers = [
        reader
        for loader in sample_loaders(data.train_dataloader().loader.dataset.dataset)
        for reader in loader.join_readers
    ]
    assert readers
    for reader in readers:
        assert isinstance(reader, ShardReader)
        tars = list(reader._reader.itar_files_cache.values())
        assert tars
        assert [len(tar.members) for tar in tars] == [0] * len(tars)


def test_fewer_samples_than_loader_processes_is_said_before_any_starts(make_data, copied):
    split = copied / ".nv-meta" / "split.yaml"
    split.write_text(split.read_text().replace("{000000..000007}", "000001"))
    count = len(keys_by_split(copied)["train"])
    make_data(copied, f"data.num_workers={count}").train_dataloader()
    with pytest.raises(ConfigError, match=f"too few samples.*data.num_workers={count + 1} share"):
        make_data(copied, f"data.num_workers={count + 1}").train_dataloader()


def test_only_buffers_that_mix_epochs_are_warned_of(make_data, shards, capsys):
    total = len(keys_by_split(shards)["train"])
    assert total % 2, "one process has one sample more, and the share is the smaller one's"
    options = ("data.packing=true", "data.num_workers=2", "data.shuffle_buffer_size=8")
    for size, mix in ((total, "null"), (total // 2, "true"), (total // 2 + 1, "true")):
        more = (f"data.packing_buffer_size={size}", f"data.mix_epochs={mix}")
        make_data(shards, *options, *more).train_dataloader()
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(
        f"warning: data.packing_buffer_size={total // 2 + 1} is more than the {total // 2} samples "
    )


def test_loader_processes_draw_no_bars(make_data, shards, capfd):
    options = ("data.packing=true", "data.packing_buffer_size=8", "data.num_workers=1")
    batches = iter(make_data(shards, *options).train_dataloader())
    assert next(batches).sample_keys
    assert "Filling" not in capfd.readouterr().err


def test_the_index_knows_what_begins_where(shards, tmp_path):
    shard = shards / "pretrain-000000.tar"
    first = members(shard)[0]
    assert key_at(shards, shard.name, first.offset) == first.name.partition(".")[0]
    assert key_at(shards, shard.name, 1) is None
    assert key_at(shards, "other.tar", 0) is None
    assert key_at(tmp_path, shard.name, 0) is None
