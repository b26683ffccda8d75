"""Damaged, joined and nested shards: all commands and training count the same, and say so."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_prep.cli import app
from dct_vl.errors import ConfigError
from dct_vl.inputs.shard_index import keys_by_split
from dct_vl.inputs.shard_reader import read_split
from dct_vl.runs.checks import check_data_path


def call(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def keys_of(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return list(dict.fromkeys(member.name.partition(".")[0] for member in tar))


@pytest.fixture(scope="module")
def hurt(shards, tmp_path_factory):
    """Shards with a flipped header byte, a joint, a subfolder, brackets and a link in their path;
    the keys of all samples, and of those that are lost.
    """
    folder = tmp_path_factory.mktemp("hurt")
    (folder / "real").mkdir()
    (folder / "link").symlink_to("real")
    root = folder / "link" / "W[1]"
    shutil.copytree(shards, root, ignore=shutil.ignore_patterns(".nv-meta", "*.idx"))
    (root / ".data_prep" / "prepared.json").unlink(missing_ok=True)
    keys = [key for path in sorted(root.glob("*.tar")) for key in keys_of(path)]
    flipped = root / "pretrain-000001.tar"
    with tarfile.open(flipped) as tar:
        member = next(m for m in tar if m.name.endswith(".jpg"))
    with flipped.open("r+b") as file:
        file.seek(member.offset + 1)
        file.write(b"\xff")
    first, second, third = (root / f"pretrain-00000{number}.tar" for number in (2, 3, 4))
    with first.open("ab") as joined:
        joined.write(second.read_bytes())
    second.unlink()
    (root / "sub").mkdir()
    third.rename(root / "sub" / third.name)
    manifest = json.loads((root / "manifest.json").read_bytes())
    kept = {shard["name"]: shard for shard in manifest["shards"]}
    kept[first.name]["bytes"] = first.stat().st_size
    kept[first.name]["samples"] += kept[second.name]["samples"]
    del kept[second.name], kept[third.name]
    manifest["shards"] = list(kept.values())
    (root / "manifest.json").write_text(json.dumps(manifest))
    prepared = call("prepare", root, "--split", "7,1,1", "--num-workers", "2")
    return root, keys, [member.name.partition(".")[0]], prepared


def test_prepare_counts_them_and_names_the_damage(hurt):
    root, keys, _, prepared = hurt
    assert prepared.exit_code == 0, prepared.output
    assert "energon prepare over 9 shards" in prepared.stdout
    assert f"train 7, val 1, test 1; {len(keys)} samples" in prepared.stdout
    assert "warning: pretrain-000001.tar is damaged at 1 places (byte" in prepared.stderr
    assert "1 of 9 shards are damaged" in prepared.stderr
    info = json.loads((root / ".nv-meta" / ".info.json").read_text())
    assert "sub/pretrain-000004.tar" in info["shard_counts"]


def test_training_reads_all_that_is_sound(hurt):
    root, keys, lost, _ = hurt
    indexed = keys_by_split(root)
    assert sorted(key for split in indexed.values() for key in split) == sorted(keys)
    found, faults = [], []
    for split in ("train", "val", "test"):
        samples = read_split(str(root), split, on_fault=lambda key, _: faults.append(key))
        found += [sample.key for sample in samples]
    assert sorted(found) == sorted(set(keys) - set(lost))
    assert faults == lost


def test_stats_preview_and_verify_say_the_same(hurt):
    root, keys, lost, _ = hurt
    stats = call("stats", root, "--tokenizer", "pixel", "--workers", "1")
    assert stats.exit_code == 0, stats.output
    assert "1 damaged places: pretrain-000001.tar, byte" in stats.stderr
    assert f"1 unusable samples: pretrain-000001.tar, {lost[0]}: the shard is" in stats.stderr
    figures = json.loads((root / "stats.json").read_text())
    assert figures["samples"] == len(keys) - 1
    assert figures["unusable"] == {"samples": 1, "damaged_places": 1}
    preview = call("preview", root, "--count", "1000")
    assert f"{len(keys) - 1} samples" in preview.stdout
    assert (
        preview.stderr
        == stats.stderr.splitlines(keepends=True)[-2] + (stats.stderr.splitlines(keepends=True)[-1])
    )
    verify = call("verify", root, "--workers", "1")
    assert verify.exit_code == 1
    assert "pretrain-000001.tar: damaged at byte" in verify.stdout
    assert f"pretrain-000001.tar: {lost[0]}: the shard is damaged there" in verify.stdout
    assert "sub/pretrain-000004.tar is not in the manifest; Energon would read it" in verify.stdout


def test_an_index_that_is_too_short_is_made_again(shards, tmp_path):
    """As a former version left it, or `energon prepare` on its own."""
    root = shutil.copytree(shards, tmp_path / "W")
    assert "was prepared like this already" in call("prepare", root).stdout
    index = root / "pretrain-000004.tar.idx"
    whole = index.read_bytes()
    index.write_bytes(whole[:-8])
    with pytest.raises(ConfigError, match=r"1 shards ends before they do \(pretrain-000004"):
        check_data_path(str(root))
    assert "is prepared; shards" in call("prepare", root, "--num-workers", "1").stdout
    assert index.read_bytes() == whole
    check_data_path(str(root))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("z.tar", b"\x1f\x8b\x08", "z.tar is compressed (gzip); training reads plain tars"),
        ("a{1,2}.tar", b"", "Energon takes braces in a shard's name for a pattern; rename it"),
        ("sub/r.tar", b"Rar!\x1a\x07", "r.tar is no shard: it is a RAR archive"),
    ],
)
def test_shards_that_training_could_not_read_are_refused(tmp_path, name, data, message):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(data)
    done = call("prepare", tmp_path, "--split", "1,0,0")
    assert done.exit_code == 1
    assert message in done.stderr
