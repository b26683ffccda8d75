"""Keys by split against the shards themselves, and when two folders count as the same data."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from data_prep.indexing import unread_ends
from dct_vl.errors import ConfigError
from dct_vl.inputs.shard_index import data_identity, keys_by_split, used_shards
from dct_vl.inputs.shard_reader import read_split
from dct_vl.runs.checks import check_data_path
from dct_vl.runs.config.compose import compose_config
from dct_vl.runs.run_files import write_provenance


@pytest.fixture
def copied(shards, tmp_path):
    """The shared shards somewhere else, to be changed."""
    return shutil.copytree(shards, tmp_path / "copied")


def test_every_split_has_the_keys_that_the_loader_gives(shards):
    found = keys_by_split(shards)
    assert set(found) == {"train", "val", "test"}
    for split, keys in found.items():
        assert keys == {sample.key for sample in read_split(str(shards), split)}


def test_a_shard_that_holds_more_than_its_index_is_refused(copied):
    """As `energon prepare` leaves it at a damaged header, or where two tars were joined."""
    check_data_path(str(copied))
    index = copied / "pretrain-000002.tar.idx"
    index.write_bytes(index.read_bytes()[:-8])
    assert unread_ends(copied, used_shards(copied)) == ["pretrain-000002.tar"]
    with pytest.raises(ConfigError, match=r"1 shards ends before they do \(pretrain-000002\.tar\)"):
        check_data_path(str(copied))
    with (copied / "pretrain-000003.tar").open("ab") as shard:
        shard.write(bytes(100_000))
    assert unread_ends(copied, used_shards(copied)) == ["pretrain-000002.tar"], "zeros hold nothing"


def test_the_folder_may_have_any_name(copied):
    named = copied.rename(copied.with_name("50%23 #1?mode=x ü"))
    assert keys_by_split(named)["train"]


def test_excluded_shards_and_samples_are_in_no_split(copied):
    before = keys_by_split(copied)
    file = copied / ".nv-meta" / "split.yaml"
    parts = yaml.safe_load(file.read_text())
    shard = parts["split_parts"]["val"][0]
    key = sorted(before["test"])[0]
    parts["exclude"] = [shard, f"{parts['split_parts']['test'][0]}/{key}"]
    file.write_text(yaml.safe_dump(parts))
    found = keys_by_split(copied)
    assert found == {"train": before["train"], "val": set(), "test": before["test"] - {key}}


def test_a_copy_is_the_same_data_and_a_changed_byte_or_split_is_not(shards, copied):
    whole = data_identity(shards)
    assert data_identity(copied) == whole
    file = copied / ".nv-meta" / "split.yaml"
    parts = yaml.safe_load(file.read_text())
    parts["split_parts"]["val"], parts["split_parts"]["test"] = (
        parts["split_parts"]["test"],
        parts["split_parts"]["val"],
    )
    file.write_text(yaml.safe_dump(parts))
    changed = data_identity(copied)
    assert changed["shards"] == whole["shards"]
    assert changed["split"] != whole["split"]
    manifest = copied / "manifest.json"
    content = json.loads(manifest.read_text())
    content["shards"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    assert data_identity(copied)["shards"] != whole["shards"]


def test_shards_without_a_manifest_count_by_their_size(copied):
    (copied / "manifest.json").unlink()
    before = data_identity(copied)
    tar = min(copied.glob("*.tar"))
    tar.write_bytes(tar.read_bytes() + bytes(512))
    assert data_identity(copied)["shards"] != before["shards"]


def test_what_nobody_prepared_has_no_identity(tmp_path):
    assert data_identity(tmp_path) is None
    assert keys_by_split(tmp_path) is None
    (tmp_path / "blend.yaml").write_text("__class__: MetadatasetV2")
    first = data_identity(tmp_path / "blend.yaml")
    (tmp_path / "blend.yaml").write_text("__class__: Metadataset")
    assert data_identity(tmp_path / "blend.yaml") != first


def test_a_run_writes_down_what_it_is_trained_on(shards, tmp_path):
    settings = [f"data.path={shards}", "model.path=m", "tokenizer=pixel"]
    write_provenance(compose_config(settings), tmp_path)
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["data"] == data_identity(shards)
