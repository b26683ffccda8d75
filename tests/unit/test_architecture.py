"""The rules that keep the rooms of the house apart, and files of a readable size."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("dct_tokenizer", "data_prep", "dct_vl")
#: from the ground up: a room imports from those of the rows above it, not from its own row
ROWS = (
    ("dct_tokenizer", "dct_vl.errors", "dct_vl.shipped", "dct_vl.pages", "dct_vl.compat"),
    ("data_prep",),
    ("dct_vl.inputs",),
    ("dct_vl.model",),
    ("dct_vl.runs",),
    ("dct_vl.inference",),
    ("dct_vl.training", "dct_vl.captioning"),
    ("dct_vl.evaluation", "dct_vl.export"),
    ("dct_vl.verbs",),
    ("dct_vl.cli",),
    ("dct_vl.__main__",),
)
RANKS = {room: number for number, row in enumerate(ROWS) for room in row}
#: modules on top of their package, which import what the package's rooms do
ENTRY_POINTS = {
    "dct_tokenizer.cli",
    "dct_tokenizer.__main__",
    "data_prep.cli",
    "data_prep.__main__",
}
NEVER_IMPORTED = {"experiments", "launch", "benchmarks", "tests"}
#: packages that a machine may lack; only what deals with their absence speaks of them
ABSENT_PACKAGES = ("modelopt", "torchvision", "qwen_vl_utils")
TEXT_SUFFIXES = {".py", ".sh", ".md", ".yaml", ".toml", ".txt", ".css", ".jinja", ""}
#: what is done in one module only: pattern of the code → that module
ONE_MODULE = {
    # the reader outside runs without this project
    r"\.apply_chat_template\(": {"dct_vl/inputs/chat.py", "dct_vl/export/plain_reader.py"},
    # what has just written scores may read them
    r"""\[["'](correct|num_right|filtered_resps)["']\]""": {
        "dct_vl/evaluation/compare/results.py",
        "dct_vl/evaluation/forward_pass.py",
        "dct_vl/export/check.py",
    },
    r"binomtest|bootstrap\(|proportion_ci|NUM_RESAMPLES =": {
        "dct_vl/evaluation/compare/intervals.py"
    },
    r"FigureCanvasSVG|format=\"svg\"": {"dct_vl/pages/svg.py"},
    r"page\.css": {"dct_vl/pages/page.py"},
    # the reader outside gets PNGs of decoded pixels
    r"\bImage\.open\(|exif_transpose\(": {
        "dct_tokenizer/decode.py",
        "dct_vl/export/plain_reader.py",
    },
}


def imported_modules(source: str, package: str) -> set[str]:
    """Modules, and names in them, that a file imports anywhere; `package` is the file's."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            module = ".".join(filter(None, (*above, node.module)))
            found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.add(first.value)
    return found


@cache
def our_files() -> tuple[Path, ...]:
    """Files of this checkout that git knows or would add, without those deleted on disk."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        folders = (*PACKAGES, *NEVER_IMPORTED, "constraints")
        found = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
        return tuple(p for p in found if "__pycache__" not in p.parts)
    return tuple(ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file())


@cache
def modules() -> dict[str, Path]:
    """Dotted name → file of every module of the packages."""
    found = {}
    for path in our_files():
        name = path.relative_to(ROOT)
        if path.suffix == ".py" and name.parts[0] in PACKAGES:
            found[".".join(name.with_suffix("").parts).removesuffix(".__init__")] = path
    return found


@cache
def imports() -> dict[str, set[str]]:
    """Module → modules of ours that it imports."""
    found: dict[str, set[str]] = {}
    for name, path in modules().items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found[name] = set()
        for imported in imported_modules(path.read_text(), package):
            while imported and imported not in modules():
                imported = imported.rpartition(".")[0]
            if imported and imported != name:
                found[name].add(imported)
    return found


def room_of(module: str) -> str | None:
    """The room that a module is in; None for a package that holds rooms."""
    while module and module not in RANKS:
        module = module.rpartition(".")[0]
    return module or None


def find_cycle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Nodes of one cycle, in order; empty where there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for following in sorted(graph.get(node, ())):
            if cycle := visit(following, [*path, node]):
                return cycle
        done.add(node)
        return []

    return next((cycle for node in sorted(graph) if (cycle := visit(node, []))), [])


def test_imports_are_found_wherever_they_stand():
    source = (
        "import a.b as c\nfrom d.e import f\nfrom . import g\nfrom ..l import m\n"
        "def h():\n    import i\n    importlib.import_module('j.k')\n"
    )
    found = {"a.b", "d.e.f", "own.room.g", "own.l.m", "i", "j.k"}
    assert imported_modules(source, "own.room") == found


def test_every_module_is_in_a_room():
    homeless = [m for m in modules() if room_of(m) is None and m != "dct_vl"]
    assert not homeless


def test_arrows_go_one_way():
    wrong = []
    for name, imported in imports().items():
        room = room_of(name)
        for other in imported:
            other_room = room_of(other)
            if other_room is None or room is None or other_room == room:
                continue
            if RANKS[other_room] >= RANKS[room]:
                wrong.append(f"{name} imports {other}")
    assert not wrong, "\n".join(sorted(wrong))


def test_settings_do_not_read_data():
    for name, imported in imports().items():
        if name.startswith("dct_vl.runs.config"):
            assert not [m for m in imported if m.startswith("dct_vl.training")], name


def test_folders_import_each_other_one_way():
    """Also inside a room: no cycle between folders, so that each can be read on its own."""
    graph: dict[str, set[str]] = {}
    for name, imported in imports().items():
        if name in ENTRY_POINTS:
            continue
        folder = modules()[name].parent
        others = {modules()[m].parent for m in imported} - {folder}
        graph.setdefault(str(folder.relative_to(ROOT)), set()).update(
            str(other.relative_to(ROOT)) for other in others
        )
    assert find_cycle(graph) == []


def test_cycles_are_found():
    assert find_cycle({"a": ["b"], "b": ["c"], "c": []}) == []
    assert find_cycle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c"]


def test_nobody_imports_scripts_experiments_or_tests():
    for path in our_files():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] not in NEVER_IMPORTED:
            found = {m.partition(".")[0] for m in imported_modules(path.read_text(), "")}
            assert not found & NEVER_IMPORTED, f"{path.relative_to(ROOT)} imports {found}"


def test_nothing_is_left_for_later():
    words = ("TO" + "DO", "FIX" + "ME")
    for path in our_files():
        if path.suffix in TEXT_SUFFIXES:
            text = path.read_text(encoding="utf-8")
            assert not any(word in text for word in words), path.relative_to(ROOT)


def test_only_compat_knows_of_absent_packages():
    spoken_of = [ROOT / "dct_vl/training/processes/doctor.py", ROOT / "dct_vl/compat"]
    for path in modules().values():
        if any(path.is_relative_to(place) for place in spoken_of):
            continue
        pattern = rf"\b({'|'.join(ABSENT_PACKAGES)})\b"
        named = re.findall(pattern, path.read_text(), re.IGNORECASE)
        assert not named, f"{path.relative_to(ROOT)} names {named}; that is dct_vl/compat's"


@pytest.mark.parametrize("pattern", ONE_MODULE)
def test_one_way_to_do_each_thing(pattern):
    found = {
        str(path.relative_to(ROOT))
        for path in modules().values()
        if re.search(pattern, path.read_text())
    }
    assert found == ONE_MODULE[pattern]


def test_pages_have_one_frame():
    """The tokenizer's own page stands apart: its package imports nothing of ours."""
    frame = {"dct_vl/pages/templates/page.html.jinja", "dct_tokenizer/show/page.html.jinja"}
    templates = [path for path in our_files() if path.suffix == ".jinja"]
    found = {str(p.relative_to(ROOT)) for p in templates if "<html" in p.read_text()}
    assert found == frame


def test_files_are_one_idea_each():
    """Bounds at both ends: neither pages that hide, nor a page for every thought."""
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in modules().values()
    }
    assert {name: n for name, n in lengths.items() if n > 330} == {}
    own = [n for name, n in lengths.items() if not name.endswith("__init__.py")]
    assert 100 <= statistics.median(own) <= 200
    assert len(own) <= 265
    # 34,000 before any format of data could be read and answers had slots
    assert sum(lengths.values()) <= 41_000
    tests = [p for p in our_files() if p.suffix == ".py" and p.is_relative_to(ROOT / "tests")]
    assert max(len(path.read_text().splitlines()) for path in tests) <= 400


def test_the_map_names_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = text[text.index("The map:") : text.index("What a run's configuration implies")]
    names = re.findall(r"[\w/.-]+\.(?:py|sh)\b", block)
    paths = [str(path.relative_to(ROOT)) for path in our_files()]
    assert len(names) > 30
    assert [n for n in names if not any(f"/{p}".endswith(f"/{n}") for p in paths)] == []
