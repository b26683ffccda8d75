import json
import tarfile

import pytest
from raw_set import write_plain_set
from rich.console import Console

from data_prep.executor import InProcessExecutor
from data_prep.options import Options
from data_prep.progress import Reporter
from data_prep.run import Job, run
from data_prep.shards import ShardWriter
from data_prep.verify import verify


@pytest.fixture
def shards(tmp_path):
    write_plain_set(tmp_path / "data", 12)
    options = Options(shard_size=4)
    job = Job(data_dir=tmp_path / "data", output_dir=tmp_path / "W", json=None, options=options)
    run(job, InProcessExecutor(), Reporter(Console(quiet=True)))
    return tmp_path / "W"


def problems(root):
    return {f.name: f.problems for f in verify(root, workers=2) if f.problems}


def rewrite(root, shard, change):
    """Write a shard anew with changed parts, and a manifest that vouches for it."""
    path = root / shard
    with tarfile.open(path) as tar:
        parts = [(m.name, tar.extractfile(m).read()) for m in tar]
    with ShardWriter(path) as writer:
        for name, data in change(parts):
            writer.add(name, data)
        size, digest = writer.publish()
    manifest = json.loads((root / "manifest.json").read_bytes())
    line = next(line for line in manifest["shards"] if line["name"] == shard)
    line["bytes"], line["sha256"] = size, digest
    (root / "manifest.json").write_text(json.dumps(manifest))


def test_sound_shards(shards):
    assert problems(shards) == {}
    assert sum(len(f.samples) for f in verify(shards, workers=1)) == 12


def test_a_flipped_bit(shards):
    path = shards / "pretrain-000001.tar"
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)
    assert "SHA-256" in problems(shards)["pretrain-000001.tar"][0]


def test_lost_cut_and_foreign_shards(shards):
    (shards / "pretrain-000000.tar").unlink()
    path = shards / "pretrain-000001.tar"
    path.write_bytes(path.read_bytes()[:5000])
    (shards / "other.tar").write_bytes(b"")
    found = problems(shards)
    assert "No such file" in found["pretrain-000000.tar"][0]
    assert "5000 bytes; the manifest has" in found["pretrain-000001.tar"][0]
    assert "other.tar is not in the manifest" in found["the folder"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: [(n, b"no jpeg" if n.endswith("jpg") else d) for n, d in parts], "no JPEG"),
        (
            lambda parts: [p for p in parts if not p[0].endswith("jpg")],
            "names 1 images, the sample holds 0",
        ),
        (lambda parts: [p for p in parts if not p[0].endswith("json")], "0 JSON parts"),
        (lambda parts: [(n, d[:-3] if n[-1] == "n" else d) for n, d in parts], "cannot be read"),
        (lambda parts: parts[2:], "3 samples; the manifest has 4"),
        (lambda parts: [("000000001-ai2d_2F1" + n[18:], d) for n, d in parts[:2]], "is in"),
    ],
)
def test_shards_that_contradict_themselves(shards, change, message):
    rewrite(shards, "pretrain-000002.tar", change)
    assert message in str(problems(shards))


def test_a_lost_quarantine_line(shards):
    manifest = json.loads((shards / "manifest.json").read_bytes())
    manifest["entries"] += 1
    (shards / "manifest.json").write_text(json.dumps(manifest))
    assert "do not make up 13 entries" in problems(shards)["the folder"][0]
