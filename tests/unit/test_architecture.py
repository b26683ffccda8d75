"""The rules that keep the packages apart and the files small."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: package → those of ours that it may import
ALLOWED = {
    "dct_tokenizer": set(),
    "data_prep": {"dct_tokenizer"},
    "training": {"dct_tokenizer", "data_prep"},
    "evaluation": {"dct_tokenizer", "data_prep", "training"},
    "captioning": {"data_prep", "evaluation"},
}
NEVER_IMPORTED = {"experiments", "launch", "benchmarks", "tests"}
OURS = {*ALLOWED, *NEVER_IMPORTED}
#: packages that a machine may lack; only what deals with their absence speaks of them
ABSENT_PACKAGES = ("modelopt", "torchvision", "qwen_vl_utils")
TEXT_SUFFIXES = {".py", ".sh", ".md", ".yaml", ".toml", ".txt", ".css", ".jinja", ""}


def imported_names(source: str, package: str) -> set[str]:
    """Top-level packages that a file imports anywhere in it; `package` is that of the file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(package if node.level else str(node.module).partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.add(first.value.partition(".")[0])
    return found


def our_files() -> list[Path]:
    """Files of this checkout that git knows or would add, without those deleted on disk."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        folders = (*OURS, "constraints")
        found = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
        return [p for p in found if "__pycache__" not in p.parts]
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def test_imports_are_found_wherever_they_stand():
    source = (
        "import a.b as c\nfrom d.e import f\nfrom . import g\n"
        "def h():\n    import i\n    importlib.import_module('j.k')\n"
    )
    assert imported_names(source, "own") == {"a", "d", "own", "i", "j"}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_lies_below_them(package):
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        ours = imported_names(path.read_text(), package) & OURS
        extra = ours - ALLOWED[package] - {package}
        if extra:
            wrong.append(f"{path.relative_to(ROOT)} imports {', '.join(sorted(extra))}")
    assert not wrong, wrong


def test_nobody_imports_scripts_experiments_or_tests():
    for path in our_files():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] not in NEVER_IMPORTED:
            found = imported_names(path.read_text(), "") & NEVER_IMPORTED
            assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_nothing_is_left_for_later():
    words = ("TO" + "DO", "FIX" + "ME")
    for path in our_files():
        if path.suffix in TEXT_SUFFIXES:
            text = path.read_text(encoding="utf-8")
            assert not any(word in text for word in words), path.relative_to(ROOT)


def test_only_compat_knows_of_absent_packages():
    spoken_of = [ROOT / "training" / "doctor.py", ROOT / "training" / "compat"]
    for package in ALLOWED:
        for path in sorted((ROOT / package).rglob("*.py")):
            if any(path.is_relative_to(place) for place in spoken_of):
                continue
            pattern = rf"\b({'|'.join(ABSENT_PACKAGES)})\b"
            named = re.findall(pattern, path.read_text(), re.IGNORECASE)
            assert not named, f"{path.relative_to(ROOT)} names {named}; that is training/compat's"


def test_files_are_one_idea_each():
    lengths = {
        path.relative_to(ROOT): len(path.read_text().splitlines())
        for path in our_files()
        if path.suffix == ".py"
    }
    too_long = {str(path): length for path, length in lengths.items() if length > 400}
    assert not too_long
    assert statistics.median(lengths.values()) < 200
