"""A built wheel works from any folder, with the experiments and constraints that it holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT = ("dct_tokenizer", "data_prep", "dct_vl", "experiments", "constraints")
#: several verbs in one process, which saves its start
SCRIPT = """
import sys
from pathlib import Path
import dct_vl
from dct_vl.cli import main
from dct_vl.shipped import shipped_folder

installed = Path(sys.argv[1])
assert Path(dct_vl.__file__).is_relative_to(installed), dct_vl.__file__
for name in ("experiments", "constraints"):
    assert shipped_folder(name).is_relative_to(installed), name
assert list(shipped_folder("constraints").glob("*.txt"))
for words in sys.argv[2:]:
    print(f"--- {words}", flush=True)
    try:
        main(words.split())
    except SystemExit as end:
        print(f"status {end.code}", flush=True)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of a wheel that was built from a copy, beside nothing else of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    for name in BUILT:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    for command in (
        ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, copy],
        ["install", "--no-deps", "--no-compile", "--target", folder / "target"],
    ):
        wheels = list(folder.glob("*.whl"))
        words = [*pip, *map(str, command), *map(str, wheels)]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder / "target"


@pytest.mark.slow
def test_verbs_of_a_wheel_find_what_it_holds(installed: Path, tmp_path: Path) -> None:
    words = (
        "fit --help",
        "fit experiment=dct_tokenizer/dct28_420 data.path=x tokenizr=pixel",
        "fit experiment=dct_tokenizer/dct28_42 data.path=x",
        "tokenizer list",
        "doctor",
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(installed), *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = {
        part.partition("\n")[0]: part.partition("\n")[2] for part in done.stdout.split("--- ")[1:]
    }
    assert list(said) == list(words)
    assert "KEY=VALUE" in said["fit --help"]
    assert said["tokenizer list"].count("dct28_420")
    assert [said[w].split()[-1] for w in words[:4]] == ["0", "2", "2", "0"]
    assert "unknown key 'tokenizr'; did you mean tokenizer?" in done.stderr
    assert "dct_tokenizer/dct28_420" in done.stderr
    assert "megatron-core" in said["doctor"]
    assert not list(tmp_path.iterdir())
