"""Stages that are killed, run out of disk or may not write, as a user meets them."""

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from data_prep.drawn import write_drawn_dataset

ROOT = Path(__file__).resolve().parents[2]
OURS = [sys.executable, "-m", "data_prep"]


def call(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    words = [str(argument) for argument in arguments]
    return subprocess.run([*OURS, *words], capture_output=True, text=True, **options)


def done(*arguments: object, **options) -> str:
    finished = call(*arguments, **options)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def error_of(finished: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error."""
    assert finished.returncode == 1, finished.stdout + finished.stderr
    lines = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr
    return lines[0]


def meta(folder: Path) -> dict[str, object]:
    """What Energon's `prepare` made, without what is random in it."""
    with sqlite3.connect(folder / ".nv-meta" / "index.sqlite") as database:
        tables = ("samples", "sample_parts", "media_metadata")
        rows = {t: sorted(database.execute(f"SELECT * FROM {t}").fetchall()) for t in tables}
    database.close()
    names = (".info.json", "split.yaml", "dataset.yaml")
    texts = {name: (folder / ".nv-meta" / name).read_text() for name in names}
    indices = {path.name: path.read_bytes() for path in folder.glob("*.idx")}
    others = {path.name for path in (folder / ".nv-meta").iterdir()}
    return {**rows, **texts, **indices, "files": others}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_drawn_dataset(folder, num_entries=60, seed=1)
    return folder


@pytest.fixture(scope="module")
def converted(data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("converted") / "W"
    done("cambrian", "--data-dir", data, "--output-dir", output, "--workers", "1")
    return output


@pytest.fixture(scope="module")
def prepared(converted, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "W"
    shutil.copytree(converted, folder, copy_function=shutil.copy2)
    done("prepare", folder, "--split", "8,1,1", "--num-workers", "2")
    return folder


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found |= {child} | descendants(child)
    return found


def test_prepare_is_killed_at_several_moments(converted, prepared, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "W", copy_function=shutil.copy2)
    command = [*OURS, "prepare", str(folder), "--num-workers", "2"]
    kills = 0
    for moment in ("index.sqlite", ".info.json", "split.yaml"):
        if moment == "split.yaml":  # so that there is something to prepare again
            (folder / ".data_prep" / "prepared.json").unlink(missing_ok=True)
            (folder / ".nv-meta" / ".info.json").unlink(missing_ok=True)
            (folder / ".nv-meta" / "split.yaml").unlink(missing_ok=True)
        awaited = folder / ".nv-meta" / moment
        before = awaited.stat().st_ino if awaited.exists() else None
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if awaited.exists() and awaited.stat().st_ino != before:
                break
            time.sleep(0.001)
        others = descendants(process.pid) if process.returncode is None else set()
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in others):
            assert time.monotonic() < deadline, "workers outlive the killed command"
            time.sleep(0.01)
    assert kills >= 2, "the kills came too late to test anything"
    assert "train 8, val 1, test 1" in done("prepare", folder)
    assert meta(folder) == meta(prepared)


def test_what_a_killed_energon_left_is_made_again(converted, prepared, tmp_path):
    """`energon prepare` itself, killed: an index without the rest, once taken for other data."""
    folder = shutil.copytree(converted, tmp_path / "W", copy_function=shutil.copy2)
    (folder / ".nv-meta").mkdir()
    index = (prepared / ".nv-meta" / "index.sqlite").read_bytes()
    (folder / ".nv-meta" / "index.sqlite").write_bytes(index[: len(index) // 2])
    (folder / ".nv-meta" / "split.yaml").write_bytes(b"")
    done("prepare", folder)
    assert meta(folder) == meta(prepared)


def test_a_split_written_by_hand_outlives_new_indexing(prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "W", copy_function=shutil.copy2)
    split = folder / ".nv-meta" / "split.yaml"
    parts = {"train": [f"pretrain-00000{n}.tar" for n in (9, 3, 1)], "val": ["pretrain-000002.tar"]}
    split.write_text(yaml.safe_dump({"split_parts": parts}))
    before = split.read_bytes()
    (folder / ".nv-meta" / ".info.json").unlink()
    text = done("prepare", folder)
    assert split.read_bytes() == before
    assert "is prepared; shards: train 3, val 1" in text
    assert "which uses 6 shards nowhere; --replace-split divides the shards anew" in text
    assert "train 8, val 1, test 1" in done("prepare", folder, "--replace-split")


def test_a_key_that_is_there_twice_is_no_reason_to_rewrite_shards(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "W", copy_function=shutil.copy2)
    shutil.rmtree(folder / ".data_prep")
    (folder / "manifest.json").unlink()
    shutil.copy(folder / "pretrain-000004.tar", folder / "twice.tar")
    line = error_of(call("prepare", folder))
    assert "is there more than once (in pretrain-000004.tar, twice.tar)" in line
    assert "python -m data_prep blend" in line
    assert "fix-duplicates" not in line


def limited(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("size", [0, 8_000, 20_000])
def test_a_conversion_without_room(data, converted, tmp_path, size):
    """The index of the tars, the plan or a shard finds no room; a rerun with room goes on."""
    command = ["cambrian", "--data-dir", data, "--output-dir", tmp_path / "W", "--workers", "1"]
    error_of(call(*command, preexec_fn=lambda: limited(size)))
    done(*command)
    for path in converted.iterdir():
        if path.is_file():
            assert (tmp_path / "W" / path.name).read_bytes() == path.read_bytes()


def test_preparing_without_room(converted, prepared, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "W", copy_function=shutil.copy2)
    line = error_of(call("prepare", folder, preexec_fn=lambda: limited(10_000)))
    assert "cannot be prepared: sqlite3.OperationalError" in line
    done("prepare", folder)
    assert meta(folder) == meta(prepared)


@pytest.fixture
def read_only(prepared, tmp_path) -> Iterator[Path]:
    """The prepared folder, mounted so that nobody may write to it."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    if os.getuid():  # permissions mean nothing to root, to others they do the same
        shutil.copytree(prepared, folder, copy_function=shutil.copy2, dirs_exist_ok=True)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield folder
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "shards", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        shutil.copytree(prepared, folder, copy_function=shutil.copy2, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_shards_that_may_only_be_read(read_only, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    options = {"cwd": place, "env": {**os.environ, "COLUMNS": "300", "PYTHONPATH": str(ROOT)}}
    text = done("stats", read_only, "--html", "--tokenizer", "pixel", **options)
    assert "tokens, pixel" in text
    assert f"all figures: {place / 'read_only-stats.json'}" in text
    assert f"page: {place / 'read_only-stats.html'}" in text
    assert str(place / "read_only-preview.html") in done("preview", read_only, **options)
    assert len(list(place.iterdir())) == 3
    assert "are as the manifest has them" in done("verify", read_only, "--workers", "1", **options)
    line = error_of(call("prepare", read_only, "--split", "6,2,2", **options))
    assert "Permission denied" in line or "Read-only file system" in line


def test_half_a_conversion_is_shown_with_a_warning(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "W", copy_function=shutil.copy2)
    (folder / "manifest.json").unlink()
    (folder / "pretrain-000009.tar").unlink()
    finished = call("preview", folder)
    assert finished.returncode == 0
    assert "is not finished (9 of 10 shards are there)" in finished.stderr


def test_drawing_again_after_a_kill(data, tmp_path):
    shutil.copytree(data, tmp_path / "D")
    for tar in (tmp_path / "D").glob("*.tar"):
        tar.write_bytes(tar.read_bytes()[:700])
    done("draw", "--output-dir", tmp_path / "D", "--num-entries", "60", "--seed", "1")
    for path in data.iterdir():
        if path.is_file():
            assert (tmp_path / "D" / path.name).read_bytes() == path.read_bytes()
