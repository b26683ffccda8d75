"""Energon's index against the manifest, the shards on disk and itself."""

import json
import shutil
import sqlite3

import pytest
import yaml
from raw_set import write_tar
from rich.console import Console
from typer.testing import CliRunner

from data_prep.blend import blend, parse_member
from data_prep.cli import app
from data_prep.cli_convert import _say_summary
from data_prep.energon import prepare
from data_prep.manifest import summarize
from data_prep.prepared import check_prepared, read_index
from data_prep.progress import Reporter
from data_prep.shards import shard_names
from data_prep.split import split_by_hand, suggested_split
from data_prep.workspace import Workspace, WorkspaceError


@pytest.fixture
def root(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "W", copy_function=shutil.copy2)


@pytest.fixture
def foreign(root):
    (root / "manifest.json").unlink()
    shutil.rmtree(root / ".data_prep")
    return root


def change(file, edit):
    load, dump = (json.loads, json.dumps) if file.suffix == ".json" else (yaml.safe_load, yaml.dump)
    content = load(file.read_text())
    edit(content)
    file.write_text(dump(content))


def index_first_shards_only(root, number):
    """As `prepare` leaves it that ran while only so many shards were there."""
    info = root / ".nv-meta" / ".info.json"
    dropped = list(json.loads(info.read_text())["shard_counts"])[number:]
    change(info, lambda c: [c["shard_counts"].pop(name) for name in dropped])
    split = root / ".nv-meta" / "split.yaml"
    parts = {"train": [f"pretrain-00000{{0..{number - 1}}}.tar"], "val": [], "test": []}
    change(split, lambda c: c.update(split_parts=parts))
    with sqlite3.connect(root / ".nv-meta" / "index.sqlite") as database:
        database.execute("DELETE FROM samples WHERE tar_file_id >= ?", (number,))
    database.close()
    return dropped


def refused(root, message):
    with pytest.raises(WorkspaceError, match=message) as caught:
        check_prepared(root)
    assert "\n" not in str(caught.value)
    assert f"python -m data_prep prepare {root}" in str(caught.value)


def test_sound(root):
    check_prepared(root)
    assert {part: len(names) for part, names in read_index(root).parts.items()} == {
        "train": 8,
        "val": 1,
        "test": 1,
    }


def test_an_index_of_the_shards_that_were_there_before_the_rest(root):
    dropped = index_first_shards_only(root, 4)
    refused(root, r"lacks 6 of 10 shards of the manifest \(pretrain-000004.tar")
    change(root / ".nv-meta" / "split.yaml", lambda c: c.update(exclude=dropped))
    check_prepared(root)


def test_foreign_shards_are_compared_with_those_on_disk(foreign):
    check_prepared(foreign)
    shutil.copy(foreign / "pretrain-000001.tar", foreign / "extra.tar")
    refused(foreign, r"lacks 1 of 11 shards that are there \(extra.tar\)")


def test_other_samples_than_the_manifest(root):
    def edit(content):
        content["shards"][2]["samples"] += 5

    change(root / "manifest.json", edit)
    refused(root, r"counts \d+ samples in pretrain-000002.tar, the manifest \d+ \(1 shards differ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".info.json", r"prepared by half \(.nv-meta/.info.json is not there\)"),
        ("split.yaml", r"prepared by half \(.nv-meta/split.yaml is not there\)"),
        ("dataset.yaml", r"prepared by half \(.nv-meta/dataset.yaml is not there\)"),
    ],
)
def test_half_an_index(root, name, message):
    (root / ".nv-meta" / name).unlink()
    refused(root, message)


def test_a_database_that_was_cut_emptied_or_never_filled(root):
    database = root / ".nv-meta" / "index.sqlite"
    whole = database.read_bytes()
    for content in (whole[: len(whole) // 2], b"junk" * 500, b""):
        database.write_bytes(content)
        refused(root, r"index.sqlite is broken \(")
    database.write_bytes(whole)
    with sqlite3.connect(database) as connection:
        connection.execute("DELETE FROM samples")
    connection.close()
    refused(root, "index.sqlite holds 0 samples where .*.info.json counts 1")
    database.unlink()
    check_prepared(root)  # as Energon before version 5 left it


@pytest.mark.parametrize("junk", ["{", "[]", "{}", "shard_counts: [", "\0"])
@pytest.mark.parametrize("name", [".info.json", "split.yaml"])
def test_junk(root, name, junk):
    (root / ".nv-meta" / name).write_text(junk)
    with pytest.raises(WorkspaceError, match=f"{name} .*prepare") as caught:
        check_prepared(root)
    assert "\n" not in str(caught.value)


def test_an_unfinished_conversion_is_neither_prepared_nor_blended_nor_trained_on(root, tmp_path):
    (root / "manifest.json").unlink()
    (root / "pretrain-000009.tar").unlink()
    message = r"is not finished \(9 of 10 shards are there\): run the command that converts into"
    for use in (
        lambda: prepare(root, None, num_workers=1),
        lambda: blend(tmp_path / "all.yaml", [parse_member(str(root))]),
        lambda: check_prepared(root),
    ):
        with pytest.raises(WorkspaceError, match=message):
            use()


def test_every_folder_of_a_blend_is_looked_at(root, shards, tmp_path):
    target = tmp_path / "all.yaml"
    blend(target, [parse_member(str(shards)), parse_member(str(root))])
    check_prepared(target)
    index_first_shards_only(root, 4)
    with pytest.raises(WorkspaceError, match="lacks 6 of 10 shards"):
        check_prepared(target)


def test_a_split_written_by_hand_is_not_replaced_without_a_word(root):
    split = root / ".nv-meta" / "split.yaml"
    parts = {"train": ["pretrain-00000{0..5}.tar"], "val": ["pretrain-00000{6..9}.tar"], "test": []}
    change(split, lambda c: c.update(split_parts=parts))
    before = split.read_bytes()
    with pytest.raises(WorkspaceError, match=r"leave --split out to keep it, or add --replace-s"):
        prepare(root, "8,1,1", num_workers=1)
    kept = prepare(root, None, num_workers=1)
    assert (kept.shards, kept.kept_split) == ({"train": 6, "val": 4, "test": 0}, True)
    assert split.read_bytes() == before


def test_damage_that_prepare_has_named_is_known(root):
    def lose(content):
        content["shards"][2]["samples"] += 1

    change(root / "manifest.json", lose)
    with pytest.raises(WorkspaceError, match="1 shards differ"):
        check_prepared(root)
    note = {"damage": {"pretrain-000002.tar": ["byte 512: …"]}}
    change(root / ".data_prep" / "prepared.json", lambda c: c.update(note))
    check_prepared(root)


def test_a_ratio_that_is_there_already_may_be_asked_for(foreign):
    """As `energon prepare` left it, and somebody prepares it here too."""
    assert split_by_hand(foreign, {}, shard_names(foreign), "8,1,1") is None
    assert split_by_hand(foreign, {}, shard_names(foreign), "6,2,2") is not None
    assert split_by_hand(foreign, {}, shard_names(foreign), None) is not None


def test_a_split_written_by_hand_that_does_not_fit_the_shards(foreign):
    split = foreign / ".nv-meta" / "split.yaml"
    parts = {"train": ["pretrain-00000{0..9}.tar", "gone.tar"]}
    change(split, lambda c: c.update(split_parts=parts))
    with pytest.raises(WorkspaceError, match=r"names shards that are not there \(gone.tar\)"):
        prepare(foreign, None, num_workers=1)
    change(split, lambda c: c["split_parts"]["train"].pop())
    shutil.copy(foreign / "pretrain-000001.tar", foreign / "extra.tar")
    with pytest.raises(WorkspaceError, match=r"does not know 1 new shards \(extra.tar\): add"):
        prepare(foreign, None, num_workers=1)


@pytest.mark.parametrize(
    ("num_shards", "split"),
    [(1, "1,0,0"), (2, "1,1,0"), (3, "1,1,1"), (4, "2,1,1"), (5, "3,1,1"), (10, "8,1,1")],
)
def test_the_advice_fits_the_number_of_shards(num_shards, split):
    assert suggested_split(num_shards) == split


def test_members_of_a_blend_that_choose_their_own_files_are_left_to_energon(root, tmp_path):
    (root / ".nv-meta" / "split.yaml").rename(root / ".nv-meta" / "mine.yaml")
    member = {"path": "W", "split_config": "mine.yaml", "aux": {"more": {"path": "W"}}}
    target = tmp_path / "all.yaml"
    target.write_text(yaml.safe_dump({"splits": {"train": {"blend": [member]}}}))
    check_prepared(target)
    del member["split_config"]
    target.write_text(yaml.safe_dump({"splits": {"train": {"blend": [member]}}}))
    with pytest.raises(WorkspaceError, match="prepared by half"):
        check_prepared(target)


def test_a_rerun_asks_to_prepare_only_what_is_not_prepared(root, capsys):
    workspace = Workspace(root)

    def said():
        _say_summary(summarize(workspace), workspace, Reporter(Console(width=300)))
        return capsys.readouterr().out

    assert "successfully converted" in said()
    assert "Next:" not in said()
    shutil.rmtree(root / ".nv-meta")
    assert f"Next: python -m data_prep prepare {root} --split" in said()


def test_prepare_says_that_training_cannot_use_the_first_samples(tmp_path):
    parts = {f"{n}.{part}": b"\xff\xd8" for n in range(3) for part in ("jpgs", "json")}
    write_tar(tmp_path / "a.tar", parts)
    done = CliRunner().invoke(app, ["prepare", str(tmp_path), "--num-workers", "1"])
    assert done.exit_code == 0, done.output
    assert (
        "warning: training cannot use 3 of the first 3 samples: a.tar, 0: part jpgs is of a name "
        "that is not known"
    ) in done.output


def test_of_a_conversion_without_a_shard_yet_the_rest_is_to_be_made(root):
    (root / "manifest.json").unlink()
    for shard in root.glob("*.tar"):
        shard.unlink()
    done = CliRunner().invoke(app, ["prepare", str(root)])
    assert done.exit_code == 1
    assert "(0 of 10 shards are there): run the command that converts into" in done.output
    assert "energon prepare over" not in done.output
    shutil.rmtree(root / ".data_prep")
    done = CliRunner().invoke(app, ["prepare", str(root)])
    assert "holds no shards; make them with `python -m data_prep convert`" in done.output


def test_a_folder_that_cannot_be_written_to(foreign):
    (foreign / ".data_prep").touch()  # as a read-only one, also for root
    done = CliRunner().invoke(app, ["prepare", str(foreign)])
    assert done.exit_code == 1
    assert f"nothing can be written to {foreign} (" in done.output
    assert "or name another folder (of shards: a copy)" in done.output


def test_a_file_of_conversations_is_to_be_converted_before_it_is_blended(root, tmp_path):
    lines, blended = tmp_path / "t.jsonl", tmp_path / "all.yaml"
    lines.write_text("{}")
    blend(blended, [parse_member(str(root))])
    for path, message in (
        (lines, rf"t.jsonl is a file, .*`python -m data_prep convert {lines} --output-dir W`"),
        (blended, "all.yaml is a file, .*: give the folders that it names"),
        (tmp_path / "none", "none does not exist"),
    ):
        with pytest.raises(WorkspaceError, match=message) as caught:
            blend(tmp_path / "more.yaml", [parse_member(f"{path}=1"), parse_member(f"{root}=1")])
        assert "energon prepare" not in str(caught.value)
