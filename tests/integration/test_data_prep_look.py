"""`stats`, `preview` and `verify` as a user types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.drawn import write_drawn_dataset

OURS = [sys.executable, "-m", "data_prep"]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*OURS, *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("look")
    write_drawn_dataset(root / "data", num_entries=60, seed=3)
    done = call("cambrian", "--data-dir", str(root / "data"), "--output-dir", str(root / "W"))
    assert done.returncode == 0, done.stderr
    return root / "W"


def test_stats(shards):
    done = call("stats", str(shards), "--html", "--max-pixels", "20000")
    assert done.returncode == 0, done.stderr
    figures = json.loads((shards / "stats.json").read_bytes())
    manifest = json.loads((shards / "manifest.json").read_bytes())
    assert figures["samples"] == manifest["kept"]
    assert figures["images"] == manifest["images"]
    assert figures["sources"] == manifest["sources"]
    tokens = figures["visual_tokens"]
    assert tokens["pixel"]["mean"] > tokens["post_dct"]["mean"] > tokens["dct28_420"]["mean"]
    assert "tokens, dct28_420" in done.stdout
    assert "tokens known after decoding only: adaptive_rms4" in done.stdout
    assert (shards / "stats.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizer", "pixl"], "--tokenizer: unknown tokenizer 'pixl'; known: pixel"),
        (["--min-pixels", "9", "--max-pixels", "8"], "--min-pixels 9 is over --max-pixels 8"),
    ],
)
def test_bad_options(shards, arguments, message):
    done = call("stats", str(shards), *arguments)
    assert (done.returncode, message in done.stderr) == (1, True)


def test_stats_of_bounds_too_low_for_a_tokenizer(shards):
    done = call("stats", str(shards), "--tokenizer", "dct28_420", "--max-pixels", "800")
    assert done.returncode == 0, done.stderr
    assert "dct28_420: 57 images cannot be cut within these pixel bounds" in done.stdout


def test_preview(shards, tmp_path):
    done = call("preview", str(shards), "--count", "5", "--output", str(tmp_path / "p.html"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.html").read_text().count("<article>") == 5


def test_empty_folders(tmp_path):
    for verb in ("stats", "preview", "prepare"):
        done = call(verb, str(tmp_path))
        assert (done.returncode, "holds no shards" in done.stderr) == (1, True)
    done = call("verify", str(tmp_path))
    assert (done.returncode, "no manifest" in done.stderr) == (1, True)


def test_verify_sees_a_stale_index(shards):
    assert call("prepare", str(shards)).returncode == 0
    done = call("verify", str(shards))
    assert done.returncode == 0, done.stdout
    assert "are as the manifest has them" in done.stdout
    info = shards / ".nv-meta" / ".info.json"
    counts = json.loads(info.read_text())
    counts["shard_counts"]["pretrain-000003.tar"] += 1
    info.write_text(json.dumps(counts))
    done = call("verify", str(shards))
    assert done.returncode == 1
    assert "prepare the folder again" in done.stdout
