"""The command as a user types it, on a drawn dataset with planted defects."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.drawn import write_drawn_dataset

OURS = [sys.executable, "-m", "data_prep", "cambrian"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    return folder, write_drawn_dataset(folder, num_entries=80, seed=2)


def cambrian(data: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [*OURS, "--data-dir", str(data), "--output-dir", str(output), *more]
    return subprocess.run(command, capture_output=True, text=True)


def test_counts_and_closing_messages(drawn, tmp_path):
    folder, summary = drawn
    done = cambrian(folder, tmp_path / "W", "--text-only", "keep")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "W" / "manifest.json").read_bytes())
    assert manifest["entries"] == 80
    assert manifest["kept"] == summary.num_usable
    assert manifest["rejected"] == {
        "missing_image": len(summary.planted["missing"]),
        "truncated_image": len(summary.planted["truncated"]),
    }
    assert manifest["conversions"]["rotated"] == len(summary.planted["rotated"])
    assert f"{summary.num_usable} of 80 conversations are kept." in done.stdout
    filtered = tmp_path / "W" / "cambrian737k_filtered.json"
    assert f"Filtering done and saved to {filtered}." in done.stdout
    assert len(json.loads(filtered.read_bytes())) == summary.num_usable
    assert "Dataset successfully converted to the webdataset format" in done.stdout
    assert "10 shards of about" in done.stdout
    assert "\x1b" not in done.stdout, "no terminal codes where there is no terminal"


def test_source_folder_may_be_read_only(drawn, tmp_path):
    folder, _ = drawn
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert cambrian(folder, tmp_path / "W", "--workers", "1").returncode == 0
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--verify", "hard"], "--verify is 'hard'; expected one of structure, decode, none"),
        (["--presize", "9"], "--presize is '9'; expected MINPIXELS:MAXPIXELS"),
        (["--presize", "9:5"], "--presize is 9:5:28; expected MINPIXELS:MAXPIXELS[:FACTOR] with"),
        (["--shard-size", "0"], "--shard-size is 0; expected at least 1"),
        (["--engine", "spark"], "--engine is 'spark'; expected local or ray"),
        (["--json", "other.json"], "--json other.json is neither a file here nor in"),
    ],
)
def test_errors_are_one_line(drawn, tmp_path, more, message):
    done = cambrian(drawn[0], tmp_path / "W", *more)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_errors_are_alike_under_dct_vl(tmp_path):
    command = [sys.executable, "-m", "dct_vl", "data", "prepare", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: ")
    assert "holds no shards" in done.stderr


def test_nothing_kept_is_a_failure(drawn, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "all.json").write_bytes((drawn[0] / "cambrian737k.json").read_bytes())
    done = cambrian(data, tmp_path / "W")
    assert done.returncode == 1
    assert "no entry was kept" in done.stdout
    assert "Missing files by folder: shapes " in done.stdout


def test_ray_is_an_extra(drawn, tmp_path):
    arguments = ["cambrian", "--engine", "ray", "--data-dir", str(drawn[0])]
    code = (
        "import sys; sys.modules['ray'] = None; from data_prep.cli import app;"
        f"app({[*arguments, '--output-dir', str(tmp_path / 'W')]!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "--engine ray needs Ray; install it" in done.stderr
