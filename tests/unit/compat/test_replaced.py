"""Every framework member that is replaced is declared, is still there, and was looked at."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from dct_vl.compat import ITEMS, activate

activate()

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("dct_tokenizer", "data_prep", "dct_vl")
LIST = yaml.safe_load((ROOT / "dct_vl" / "compat" / "replaced.yaml").read_text())
ENTRIES = [{**entry, "by": by} for by, entries in LIST.items() for entry in entries]
#: of a framework whose public members are its design for subclasses
EXTENDED = ("torch", "lightning", "hydra", "transformers", "megatron.energon", "typer")
#: set on objects of others, and replaces nothing: settings that are made to be set, and what the
#: same function has made
ORDINARY = {
    "data_prep/cli_convert.py": "verb.__signature__ verb.__annotations__",
    "data_prep/sources/captions.py": "sample",
    "data_prep/drawn/dataset.py": "member.size member.mode",
    "data_prep/indexing.py": "sys.argv",
    "dct_tokenizer/cli.py": "table.caption",
    "dct_vl/inference/chat/web.py": "os.environ",
    "dct_vl/export/bundle/modeling_dct_vl.py": "self.front_end",
    "dct_vl/export/plain_reader.py": "processor.tokenizer sys.modules",
    "dct_vl/inference/generate/hf_engine.py": "self.processor.tokenizer",
    "dct_vl/inputs/chat.py": "tokenizer.chat_template",
    "dct_vl/inputs/data_sets.py": "one.dataset.subflavors",
    "dct_vl/export/import_hf.py": "piece.data wholes[address].data",
    "dct_vl/verbs/fit.py": "sys.argv",
    "dct_vl/compat/nemo.py": "package.__spec__.submodule_search_locations",
    "data_prep/video_file.py": "stream.thread_type",
    "dct_vl/verbs/layout_check.py": "os.environ",
    "dct_vl/model/context_parallel.py": "own.context_parallel_size own.num_attention_heads "
    "own.num_query_groups",
    "dct_vl/model/random_model/__init__.py": "model.generation_config config.torch_dtype "
    "config.architectures",
    "dct_vl/model/random_model/tokenizer.py": "trained.normalizer trained.pre_tokenizer "
    "trained.decoder tokenizer.chat_template",
    "dct_vl/pages/page.py": "environment.filters",
}


@functools.cache
def sources() -> list[tuple[Path, ast.Module]]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [(path, ast.parse(path.read_text())) for path in paths]


@functools.cache
def own_members() -> set[str]:
    """Names that our own classes give their members."""
    found = set()
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found |= {
                    part.target.id
                    for part in node.body
                    if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
                }
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"
            ):
                found.add(node.attr)
    return found


def assigned(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(what, member) of assignments to members of anything but `self`; member "" is not known."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "setattr",
            "delattr",
            "object.__setattr__",
        ):
            name = node.args[1]
            is_known = isinstance(name, ast.Constant)
            yield ast.unparse(node.args[0]), str(name.value) if is_known else ""  # type: ignore[attr-defined]
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            node = node.value
        elif not isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
            continue
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            yield ast.unparse(node), node.attr


def undeclared(path: str, tree: ast.AST, ours: set[str]) -> list[str]:
    """Assignments of a file that neither the list nor `ORDINARY` has."""
    by = path.removesuffix(".py").replace("/", ".")
    known = {name.rpartition(".")[2] for e in LIST.get(by, ()) for name in e["members"]}
    ordinary = ORDINARY.get(path, "").split()
    return [
        f"{path}: {what}"
        for what, member in assigned(tree)
        if what not in ordinary
        and member not in known
        and not (member in ours and not member.startswith("_"))
        # names that are computed, and whole modules: what they are the entries say
        and not ((member == "" or what == "sys.modules" or member.startswith("__")) and known)
        and not what.startswith("ctx.")
    ]


def test_no_assignment_is_undeclared():
    ours = own_members()
    found = [
        line
        for path, tree in sources()
        for line in undeclared(path.relative_to(ROOT).as_posix(), tree, ours)
    ]
    assert not found, found


@pytest.mark.parametrize(
    "planted",
    [
        "import megatron.core.optimizer as m\nm._get_param_groups = print",
        "def f(optimizer):\n    optimizer._init_group = print",
        "setattr(torch, name, value)",
        "def f(loader):\n    loader._worker_sample_counters[0] = 1",
        "object.__setattr__(model, 'forward', print)",
        "class A:\n    def f(self):\n        self.trainer.fit_loop.epoch_progress = 1",
    ],
)
def test_a_planted_assignment_is_found(planted):
    assert undeclared("dct_vl/planted.py", ast.parse(planted), own_members())


def foreign_overrides(name: str, kind: type) -> Iterator[str]:
    """Members of frameworks that a class of ours overrides, by the name of what defines them."""
    for member in vars(kind):
        if re.fullmatch(r"__\w+__|_abc_impl|_backward_cls", member):
            continue
        for base in kind.__mro__[1:]:
            if base.__module__.partition(".")[0] in (*PACKAGES, "builtins", "typing", "enum"):
                continue
            if member in vars(base):
                is_hook = not member.startswith("_") and base.__module__.startswith(EXTENDED)
                if not is_hook:
                    yield f"{base.__module__}.{base.__qualname__}.{member}"
                break


def our_classes(module: ModuleType) -> Iterator[type]:
    return (
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind) and kind.__module__ == module.__name__
    )


#: module → the package without which it cannot be imported
NEED_PACKAGES = {
    "dct_vl.evaluation.lmms_eval_model": "lmms_eval",
    "dct_vl.model.cudnn_attention": "cudnn",
    "dct_vl.model.te_attention": "transformer_engine",
}


def test_no_override_is_undeclared():
    """Of the classes that can be imported here; `NEED_PACKAGES` has the others."""
    found, skipped = [], set()
    for path, tree in sources():
        bases = (b for n in ast.walk(tree) if isinstance(n, ast.ClassDef) for b in n.bases)
        if not any(True for _ in bases) or "bundle" in path.parts:
            continue
        by = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        try:
            module = importlib.import_module(by)
        except (ImportError, TypeError):  # TypeError: a stand-in of Megatron's is no class
            skipped.add(by)
            continue
        known = {name for e in LIST.get(by, ()) for name in e["members"]}
        for kind in our_classes(module):
            found += [f"{by}: {n}" for n in foreign_overrides(by, kind) if n not in known]
    assert not found, found
    assert skipped <= NEED_PACKAGES.keys()
    there = {by for by, name in NEED_PACKAGES.items() if importlib.util.find_spec(name)}
    assert not skipped & there


def test_exempted_files_are_there():
    assert [path for path in ORDINARY if not (ROOT / path).is_file()] == []


def test_a_planted_override_is_found():
    from megatron.core.models.gpt.gpt_model import GPTModel

    class Planted(GPTModel):
        def _postprocess(self, *args: Any, **kwargs: Any) -> Any: ...

    (found,) = foreign_overrides("planted", Planted)
    assert found == "megatron.core.models.gpt.gpt_model.GPTModel._postprocess"


def pins(device: str) -> dict[str, str]:
    """Package → version of a file of constraints."""
    lines = (ROOT / "constraints" / f"{device}.txt").read_text().splitlines()
    return dict(line.split("==", 1) for line in lines if "==" in line)  # type: ignore[misc]


def resolve(name: str) -> bool:
    """Is the member there? Attributes of instances are looked for in the source."""
    words = name.split(".")
    for count in range(len(words), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(words[:count]))
        except ImportError:
            continue
        break
    else:
        return False
    module, rest = found, words[count:]
    for place, word in enumerate(rest):
        if not hasattr(found, word):
            is_last = place == len(rest) - 1
            kinds = found.__mro__ if inspect.isclass(found) else ()
            files = [sys.modules[k.__module__] for k in kinds if k is not object] or [module]
            return is_last and any(
                re.search(rf"\b{word}\b", inspect.getsource(one)) for one in files
            )
        found = getattr(found, word)
    return True


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e['by']}: {e['members'][0]}")
def test_every_member_is_there_in_the_version_that_was_looked_at(entry):
    """Red after an upgrade: see whether the replacement still fits, then note the version."""
    assert set(entry) == {"by", "members", "checked", "when", "reason"}
    assert importlib.util.find_spec(entry["by"]) is not None
    assert [name for name in entry["members"] if not resolve(name)] == []
    package, _, checked = entry["checked"].partition(" ")
    assert pins("cpu")[package] == checked
    if package in pins("gpu") or not torch.cuda.is_available():
        # of other packages a GPU container has its own
        assert version(package).partition("+")[0] == checked
    items = {f"item {item.name}" for item in ITEMS}
    assert entry["reason"] in items or not entry["reason"].startswith("item ")


def test_no_entry_is_left_over():
    gone = []
    for entry in ENTRIES:
        text = (ROOT / f"{entry['by'].replace('.', '/')}.py").read_text()
        gone += [n for n in entry["members"] if not re.search(rf"\b{n.split('.')[-1]}\b", text)]
    assert not gone, gone


def test_every_item_of_compat_is_in_the_list():
    # it sets a variable of the environment
    items = {f"item {item.name}" for item in ITEMS} - {"item dynamo"}
    assert items == {entry["reason"] for entry in ENTRIES if entry["reason"].startswith("item ")}


def test_a_member_that_is_gone_does_not_resolve():
    assert not resolve("megatron.core.optimizer._get_parameter_groups")
    assert not resolve("megatron.core.optimizer.optimizer.MegatronOptimizer.get_gradient_norm")
    assert not resolve("no_such_package.member")
