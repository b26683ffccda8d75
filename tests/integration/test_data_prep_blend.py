"""A blend is read by Energon, in the proportion asked for."""

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
def sets(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    for name, num_entries, split in (("small", 40, "8,1,1"), ("large", 80, "9,1,0")):
        write_drawn_dataset(root / "data" / name, num_entries=num_entries, seed=len(name))
        data, output = str(root / "data" / name), str(root / name)
        assert call("cambrian", "--data-dir", data, "--output-dir", output).returncode == 0
        done = call("prepare", output, "--split", split, "--num-workers", "1")
        assert done.returncode == 0, done.stderr
    return {name: root / name for name in ("small", "large")}


READ = """
import json, sys
from megatron.energon import (
    Cooker, DefaultTaskEncoder, Sample, WorkerConfig, basic_sample_keys, edataclass, get_loader,
    get_train_dataset, get_val_dataset, stateless,
)

@edataclass
class Raw(Sample):
    pass

@stateless
def cook(sample):
    return Raw(**basic_sample_keys(sample))

class Encoder(DefaultTaskEncoder):
    decoder = None
    cookers = [Cooker(cook)]
    def batch(self, samples):
        return samples
    def encode_batch(self, batch):
        return batch

path, number = sys.argv[1], int(sys.argv[2])
config = WorkerConfig(rank=0, world_size=1, num_workers=0)
make = dict(batch_size=1, task_encoder=Encoder(), worker_config=config)
train = get_train_dataset(path, shuffle_buffer_size=None, max_samples_per_sequence=None, **make)
drawn = []
for batch in get_loader(train):
    drawn += [sample.__sources__[0].dataset_path.name for sample in batch]
    if len(drawn) == number:
        break
val = [s.__sources__[0].dataset_path.name + s.__key__
       for batch in get_loader(get_val_dataset(path, **make)) for s in batch]
print("READ " + json.dumps([drawn, val]))
"""


def read(path: Path, number: int) -> tuple[list[str], list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path), str(number)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("READ "))
    return json.loads(line.removeprefix("READ "))


def test_weights_are_what_energon_draws(sets, tmp_path):
    target = tmp_path / "blend.yaml"
    done = call("blend", str(target), f"{sets['small']}=3", f"{sets['large']}=1")
    assert done.returncode == 0, done.stderr
    assert f"75.0% of the training samples from {sets['small']}" in done.stdout
    drawn, val = read(target, 400)
    assert 0.68 < drawn.count("small") / len(drawn) < 0.82
    held = {name: json.loads((root / "manifest.json").read_bytes()) for name, root in sets.items()}
    num_val = sum(
        shard["samples"]
        for name, first in (("small", 8), ("large", 9))
        for shard in held[name]["shards"][first : first + 1]
    )
    assert len(val) == len(set(val)) == num_val, "validation holds each sample once"


def test_without_weights_every_sample_counts_the_same(sets, tmp_path):
    done = call("blend", str(tmp_path / "b.yaml"), str(sets["small"]), str(sets["large"]))
    assert done.returncode == 0, done.stderr
    counts = [int(line.split("train ")[1].split(",")[0]) for line in done.stdout.splitlines()[:2]]
    assert f"{counts[0] / sum(counts):6.1%}" in done.stdout


def test_refusals(sets, tmp_path):
    small, large, target = str(sets["small"]), str(sets["large"]), str(tmp_path / "b.yaml")
    (tmp_path / "raw").mkdir()
    for arguments, message in (
        ([target, small, f"{large}=2"], "give all or none"),
        ([target, f"{small}=1", f"{small}=2"], "named twice"),
        ([target, f"{small}=0"], "expected a number above 0"),
        ([target, str(tmp_path / "raw")], "has no .nv-meta: run `energon prepare"),
        ([str(tmp_path / "b.json"), small], "is no .yaml file"),
    ):
        done = call("blend", *arguments)
        assert (done.returncode, message in done.stderr) == (1, True), done.stderr
    assert not Path(target).exists()
