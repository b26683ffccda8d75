"""The process that is to have nothing of this project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dct_vl.export import outside

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("package", ["dct_tokenizer", "data_prep", "dct_vl"])
def test_the_project_cannot_be_imported_even_where_it_lies(package):
    """Started in the project's folder, where its packages are otherwise found."""
    reader = outside._READER
    script = f"import runpy; runpy.run_path({str(reader)!r})['close_the_door'](); import {package}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode
    assert f"ModuleNotFoundError: import of {package} halted" in done.stderr


def test_what_went_wrong_there_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"hf does not answer in plain transformers: (.|\n)*npz"):
        outside._start(tmp_path / "hf", tmp_path, "float32")
