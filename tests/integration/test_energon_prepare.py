"""The three ways to prepare shards for Energon give the same samples."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.drawn import write_drawn_dataset
from data_prep.schema import image_parts, json_part, parse_record

ENERGON = [sys.executable, "-c", "from megatron.energon.cli.main import main; main()"]
OURS = [sys.executable, "-m", "data_prep"]
MENU_LINE = re.compile(r"^(\d+)\. Crude sample", re.MULTILINE)


def call(command: list[str], **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    write_drawn_dataset(root / "data", num_entries=60, seed=1)
    output = str(root / "W")
    call([*OURS, "cambrian", "--data-dir", str(root / "data"), "--output-dir", output])
    return root / "W"


@pytest.fixture(scope="module")
def three_ways(shards, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("prepared")
    folders = {name: root / name for name in ("interactive", "non_interactive", "ours")}
    for folder in folders.values():
        shutil.copytree(shards, folder)
    _prepare_interactively(folders["interactive"])
    call(
        [
            *(*ENERGON, "prepare", str(folders["non_interactive"]), "--non-interactive"),
            *("--split-ratio", "8,1,1", "--sample-type", "CrudeWebdataset"),
        ]
    )
    text = call([*OURS, "prepare", str(folders["ours"]), "--split", "8,1,1"])
    assert "shards: train 8, val 1, test 1" in text
    return folders


def _prepare_interactively(folder: Path) -> None:
    """Answer the questions as a person would: the number of the sample type is read from the menu.

    The answers have to be there before the menu is shown, so a first try finds the number.
    """
    command = [*ENERGON, "prepare", str(folder)]
    first = subprocess.run(command, input="8,1,1\ny\n", capture_output=True, text=True)
    number = MENU_LINE.search(first.stdout)
    assert number, first.stdout + first.stderr
    shutil.rmtree(folder / ".nv-meta")
    text = call(command, input=f"8,1,1\ny\n{number[1]}\n")
    assert text.rstrip().endswith("Done")
    assert "- json" in text
    assert "- jpg" in text
    assert "jpg.jpg" not in text, "a dot in a key splits it"


READ = """
import json, sys
from megatron.energon import (
    Cooker, DefaultTaskEncoder, WorkerConfig, basic_sample_keys, edataclass, get_loader,
    get_train_dataset, get_val_dataset, stateless, Sample, SampleDecoder,
)

@edataclass
class Raw(Sample):
    parts: dict

@stateless
def cook(sample):
    parts = {n: (v if isinstance(v, bytes) else json.dumps(v).encode()).hex()
             for n, v in sample.items() if not n.startswith("__")}
    return Raw(**basic_sample_keys(sample), parts=parts)

class Encoder(DefaultTaskEncoder):
    decoder = None
    cookers = [Cooker(cook)]
    def batch(self, samples):
        return samples
    def encode_batch(self, batch):
        return batch

folder, counts = sys.argv[1], json.loads(sys.argv[2])
config = WorkerConfig(rank=0, world_size=1, num_workers=0)
found = {}
for part, count in counts.items():
    make = dict(split_part=part, batch_size=1, task_encoder=Encoder(), worker_config=config)
    if part == "train":
        dataset = get_train_dataset(folder, shuffle_buffer_size=None,
                                    max_samples_per_sequence=None, **make)
    else:
        dataset = get_val_dataset(folder, **make)
    found[part] = {}
    for batch in get_loader(dataset):
        found[part].update((sample.__key__, sample.parts) for sample in batch)
        if len(found[part]) >= count:
            break
print("SAMPLES " + json.dumps(found))
"""


def read(folder: Path, counts: dict[str, int]) -> dict[str, dict[str, dict[str, str]]]:
    """Hex of every part of every sample, by split part, key and name."""
    text = call([sys.executable, "-c", READ, str(folder), json.dumps(counts)])
    line = next(line for line in text.splitlines() if line.startswith("SAMPLES "))
    return json.loads(line.removeprefix("SAMPLES "))


def test_same_samples(three_ways):
    manifest = json.loads((three_ways["ours"] / "manifest.json").read_bytes())
    held = [shard["samples"] for shard in manifest["shards"]]
    counts = {"train": sum(held[:8]), "val": held[8], "test": held[9]}
    found = {name: read(folder, counts) for name, folder in three_ways.items()}
    assert {part: len(samples) for part, samples in found["ours"].items()} == counts
    assert found["ours"] == found["interactive"] == found["non_interactive"]
    for samples in found["ours"].values():
        for parts in samples.values():
            record = parse_record(bytes.fromhex(parts[json_part(parts)]))
            assert len(image_parts(parts)) == len(record.images) == len(record.sizes)


def test_media_metadata_is_recorded(three_ways):
    text = call(
        [
            *(sys.executable, "-c"),
            "import sqlite3, sys; d = sqlite3.connect(sys.argv[1]);"
            "print(d.execute('SELECT count(*) FROM media_metadata').fetchone()[0])",
            str(three_ways["ours"] / ".nv-meta" / "index.sqlite"),
        ]
    )
    manifest = json.loads((three_ways["ours"] / "manifest.json").read_bytes())
    assert int(text) == manifest["images"]


def test_second_prepare_does_nothing(three_ways):
    identity = (three_ways["ours"] / ".nv-meta" / "index.uuid").read_text()
    text = call([*OURS, "prepare", str(three_ways["ours"]), "--split", "8,1,1"])
    assert "was prepared like this already" in text
    assert (three_ways["ours"] / ".nv-meta" / "index.uuid").read_text() == identity
    text = call([*OURS, "prepare", str(three_ways["ours"]), "--split", "6,2,2"])
    assert "is prepared; shards: train 6, val 2, test 2" in text


def test_too_few_shards_are_refused_with_the_number_needed(shards, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("pretrain-000000.tar", "pretrain-000001.tar", "pretrain-000002.tar"):
        shutil.copy(shards / name, few)
    command = [*OURS, "prepare", str(few)]
    done = subprocess.run([*command, "--split", "8,1,1"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "3 shards at 8,1,1 leave a part empty" in done.stderr
    assert "at least 6 are needed" in done.stderr
    assert "or take --split 1,1,1" in done.stderr
    assert "train 1, val 1, test 1" in call(command)


def test_a_broken_shard_is_an_error(shards, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    (broken / "pretrain-000004.tar").write_bytes(b"no tar")
    done = subprocess.run([*OURS, "prepare", str(broken)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "lacks 1 of the 10 shards of its manifest" in done.stderr
    assert "pretrain-000004.tar" in done.stderr
    (broken / "manifest.json").unlink()
    shutil.rmtree(broken / ".data_prep")
    done = subprocess.run([*OURS, "prepare", str(broken)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pretrain-000004.tar (tarfile.ReadError: " in done.stderr
    assert len(done.stderr.splitlines()) == 1
