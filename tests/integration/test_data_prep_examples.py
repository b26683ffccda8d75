"""The README's example of each format, run as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.schema import parse_record
from data_prep.shards import iter_samples, shard_paths
from data_prep.sources import FORMATS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "data_prep" / "README.md").read_text()
#: name of the format, and its example
EXAMPLES = re.findall(r"^\*\*`(\w+)`\*\*:.*?```sh\n(.*?)```", README, re.DOTALL | re.MULTILINE)


def test_each_format_has_an_example_of_a_few_lines():
    assert {name for name, _ in EXAMPLES} == set(FORMATS)
    assert max(len(example.splitlines()) for _, example in EXAMPLES) <= 5


def test_the_examples_say_the_same(drawn: Path, tmp_path):
    source = next(path for path in sorted(drawn.glob("*.tar")) if "shapes" in path.name)
    shutil.unpack_archive(source, tmp_path / "drawn", filter="data")
    shutil.copy(next(iter(sorted((tmp_path / "drawn").rglob("*.jpg")))), tmp_path / "dog.jpg")
    # an example may not read what another one left
    script = "set -e\n" + "\n".join(
        f"mkdir in-{name}; cp dog.jpg in-{name}; cd in-{name}\n{example}cd .."
        for name, example in EXAMPLES
    )
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    path = f"{python.parent}:{os.environ['PATH']}"
    environ = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    core = str(min(os.sched_getaffinity(0)))
    # on one core there is one worker, and no pool to start
    command = ["taskset", "-c", core, "bash", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, _ in EXAMPLES:
        assert f"format: {name} (" in done.stdout
        (shard,) = shard_paths(tmp_path / f"in-{name}" / f"W-{name}")
        with shard.open("rb") as file:
            (sample,) = iter_samples(file)
            record = parse_record(sample.parts["json"].read(file))
            assert sample.parts["jpg"].read(file) == (tmp_path / "dog.jpg").read_bytes(), name
        assert [turn.text for turn in record.turns] == ["<image>\nWhat?", "A dog."], name
