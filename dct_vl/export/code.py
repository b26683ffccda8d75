"""Write the bundled modules into a folder: flat siblings with relative imports.

transformers 4.51.3 copies the files that the loaded module itself imports relatively
(`dynamic_module_utils.get_cached_module_file`), so the two modules that it loads name all others.
"""

from __future__ import annotations

import ast
import pprint
import re
from pathlib import Path

import dct_tokenizer
from dct_tokenizer import list_presets, preset_config
from dct_vl.export import bundle

_CORE = Path(dct_tokenizer.__file__).parent
_OWN = Path(bundle.__file__).parent
#: modules that transformers loads by name
_ENTRIES = ("modeling_dct_vl", "processing_dct_vl")
_EMPTY_PRESETS = "PRESETS: dict[str, dict[str, Any]] = {}"


def write_code(folder: Path) -> list[str]:
    """Write all modules; returns the names of the files."""
    sources = {f"dct_{name}": path.read_text() for name, path in _core_modules().items()}
    for path in _OWN.glob("[!_]*.py"):
        sources[path.stem] = path.read_text()
    presets = {name: preset_config(name) for name in list_presets()}
    filled = _EMPTY_PRESETS.replace("{}", pprint.pformat(presets, width=98, sort_dicts=False))
    sources["dct_registry"] = sources["dct_registry"].replace(_EMPTY_PRESETS, filled)
    for name, source in sources.items():
        flat = _relative(source)
        if name in _ENTRIES:
            others = sorted(set(sources) - {*_ENTRIES, "configuration_dct_vl"})
            lines = [f"from .{other} import __name__ as _  # noqa: F401" for other in others]
            flat += "\n\n# named here so that transformers brings them along\n"
            flat += "\n".join(lines) + "\n"
        (folder / f"{name}.py").write_text(flat)
    return [f"{name}.py" for name in sorted(sources)]


def _core_modules() -> dict[str, Path]:
    """Name → file of all families and of what they and the bundle import, the registry left out."""
    found: dict[str, Path] = {}
    waiting = sorted((_CORE / "families").glob("[!_]*.py"))
    for path in sorted(_OWN.glob("[!_]*.py")):
        waiting += _imports_of(path)
    while waiting:
        path = waiting.pop()
        if path.stem in found:
            continue
        found[path.stem] = path
        waiting += _imports_of(path)
    return found


def _imports_of(path: Path) -> list[Path]:
    """Modules of `dct_tokenizer` that a file imports."""
    paths: list[Path] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            paths += _imported(node.module, [alias.name for alias in node.names])
    return paths


def _imported(module: str, names: list[str]) -> list[Path]:
    if module == "dct_tokenizer":
        paths = [_CORE / f"{name}.py" for name in names]
    elif module.startswith("dct_tokenizer."):
        paths = [_CORE / f"{module.removeprefix('dct_tokenizer.').replace('.', '/')}.py"]
    else:
        paths = []
    return [path for path in paths if path.stem != "registry"]


def _relative(source: str) -> str:
    """The module with imports of siblings."""
    rules = (
        (r"^from dct_tokenizer\.families\.(\w+) import", r"from .dct_\1 import"),
        (r"^from dct_tokenizer\.(\w+) import", r"from .dct_\1 import"),
        (r"^from dct_tokenizer import (\w+)$", r"from . import dct_\1 as \1"),
        (r"^from dct_vl\.export\.bundle\.(\w+) import", r"from .\1 import"),
    )
    for pattern, replacement in rules:
        source = re.sub(pattern, replacement, source, flags=re.MULTILINE)
    return source
