"""A conversion that is not finished, or whose files were cut, is never taken for a whole one."""

import json
import shutil

import orjson
import pytest
from raw_set import output_bytes, write_plain_set
from rich.console import Console

from data_prep.executor import InProcessExecutor
from data_prep.manifest import check_closed
from data_prep.options import Options
from data_prep.progress import Reporter
from data_prep.run import Job, run
from data_prep.sources import SourceError
from data_prep.workspace import Workspace, WorkspaceError

JUNK = (b"", b"{", b"[]", b'{"shards": 3}', b"\0" * 4096)


def convert(root):
    options = Options(shard_size=4)
    job = Job(data_dir=root / "data", output_dir=root / "W", json=None, options=options)
    return run(job, InProcessExecutor(), Reporter(Console(quiet=True)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    entries = write_plain_set(root / "data", 12)
    lost = {**entries[0], "image": "ai2d/images/lost.jpg"}
    (root / "data" / "cambrian737k.json").write_text(json.dumps([*entries, lost]))
    convert(root)
    return root


@pytest.fixture
def root(made, tmp_path):
    shutil.copytree(made / "data", tmp_path / "data", copy_function=shutil.copy2)
    shutil.copytree(made / "W", tmp_path / "W", copy_function=shutil.copy2)
    return tmp_path


def closed(root):
    return check_closed(Workspace(root / "W"))


def test_a_whole_one(root):
    assert closed(root)["kept"] == 12


def test_foreign_shards_have_no_manifest(tmp_path):
    (tmp_path / "W").mkdir()
    (tmp_path / "W" / "a.tar").write_bytes(b"")
    assert closed(tmp_path) is None


def test_before_the_manifest(root):
    (root / "W" / "manifest.json").unlink()
    (root / "W" / "pretrain-000002.tar").unlink()
    with pytest.raises(WorkspaceError, match=r"is not finished \(2 of 3 shards are there\): run"):
        closed(root)


def test_before_the_plan(root):
    (root / "W" / "manifest.json").unlink()
    shutil.rmtree(root / "W" / ".data_prep" / "round-0")
    with pytest.raises(WorkspaceError, match="is not finished: run the command that converts"):
        closed(root)


def test_a_retry_that_was_killed(root):
    state = root / "W" / ".data_prep"
    shutil.copytree(state / "round-0", state / "round-1")
    with pytest.raises(WorkspaceError, match=r"a --retry-quarantined of .* is not finished"):
        closed(root)


@pytest.mark.parametrize("begun", [True, False])
def test_a_shard_that_was_copied_by_half(root, begun):
    shard = root / "W" / "pretrain-000001.tar"
    shard.write_bytes(shard.read_bytes()[:1000])
    if not begun:  # a copy without the state
        shutil.rmtree(root / "W" / ".data_prep")
    with pytest.raises(WorkspaceError, match=r"lacks 1 of the 3 .*\(pretrain-000001.tar\): copy"):
        closed(root)


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "quarantine.jsonl",
        "cambrian737k_filtered.json",
        ".data_prep/round-0/plan.json",
        ".data_prep/round-0/order.i64",
        ".data_prep/round-0/entries.jsonl",
        ".data_prep/round-0/rejects.jsonl",
        ".data_prep/round-0/shards/000001.json",
    ],
)
def test_a_file_of_ours_that_was_cut_is_made_again(root, name, junk):
    """A record is read only where the manifest does not speak for all shards already."""
    before = output_bytes(root / "W")
    (root / "W" / name).write_bytes(junk)
    if name.endswith("1.json"):
        (root / "W" / "manifest.json").unlink()
    convert(root)
    assert output_bytes(root / "W") == before
    assert closed(root)["kept"] == 12


@pytest.mark.parametrize("junk", JUNK)
def test_a_manifest_that_was_cut_is_named(root, junk):
    (root / "W" / "manifest.json").write_bytes(junk)
    with pytest.raises(WorkspaceError, match=r"manifest.json is not as it was written.*: run the"):
        closed(root)


def test_settings_that_were_cut_are_named_with_a_way_out(root):
    settings = root / "W" / ".data_prep" / "settings.json"
    for junk in JUNK:
        settings.write_bytes(junk)
        with pytest.raises(WorkspaceError, match=r"settings.json cannot be read .* remove that"):
            convert(root)
    settings.unlink()
    assert convert(root).kept == 12


def test_a_broken_round_takes_its_shards_and_later_rounds_along(root):
    state = root / "W" / ".data_prep"
    shutil.copytree(state / "round-0", state / "round-1")
    plan = orjson.loads((state / "round-1" / "plan.json").read_bytes())
    for shard in plan["shards"]:
        shard["number"] += 3
    (state / "round-1" / "plan.json").write_bytes(orjson.dumps(plan)[:-9])
    shutil.copy(root / "W" / "pretrain-000000.tar", root / "W" / "pretrain-000003.tar")
    assert convert(root).kept == 12
    assert not (root / "W" / "pretrain-000003.tar").exists()
    assert not (state / "round-1").exists()


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_an_index_of_tars_that_was_cut(root, keep):
    shutil.rmtree(root / "W" / ".data_prep" / "round-0")
    (root / "W" / "manifest.json").unlink()
    for shard in (root / "W").glob("*.tar"):
        shard.unlink()
    index = root / "W" / ".data_prep" / "index" / "members.sqlite"
    index.write_bytes(index.read_bytes()[:keep] + bytes(100 if keep else 0))
    if keep != 0:  # an empty file is an empty database
        with pytest.raises(SourceError, match=r"members.sqlite was cut or changed .* run the same"):
            convert(root)
    convert(root)
    assert closed(root)["kept"] == 12
