"""The command `dct-vl`: what it loads, what it says of itself and of wrong settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import invoke

from dct_vl.cli import PANELS, app_for

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "nemo", "megatron", "transformers", "lightning")
VERBS = [name for verbs in PANELS.values() for name in verbs]
#: characters of a help text, so that it is one line beside a short option's name
LONGEST = 90


def commands_of(verb: str) -> dict[str, Any]:
    """The commands below a verb by the words that lead to them."""
    group: Any = typer.main.get_command(app_for([verb]))
    found, waiting = {}, [(verb, group.commands[verb])]
    while waiting:
        words, command = waiting.pop()
        found[words] = command
        waiting += [(f"{words} {name}", c) for name, c in getattr(command, "commands", {}).items()]
    return found


def test_help_imports_nothing_heavy_and_is_the_same_both_ways():
    """A fresh process, in which one verb after the other is asked for its help."""
    script = f"""
import runpy, sys
sys.argv = ["dct-vl"]
for words in (["--help"], *([v, "--help"] for v in ("generate", "compare", "fit"))):
    sys.argv[1:] = words
    try:
        runpy.run_module("dct_vl", run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, end.code
    loaded = [name for name in {HEAVY} if name in sys.modules]
    assert not loaded, (words, loaded)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: dct-vl ") == 4
    assert all(f" {verb} " in done.stdout for verb in VERBS)
    assert "python -m" not in done.stdout


def test_the_console_script_is_the_module():
    assert 'dct-vl = "dct_vl.cli:main"' in (ROOT / "pyproject.toml").read_text()
    assert "from dct_vl.cli import main" in (ROOT / "dct_vl" / "__main__.py").read_text()


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_loads_and_explains_itself(verb):
    short = {name: text for verbs in PANELS.values() for name, (_, text) in verbs.items()}
    assert short[verb].endswith(".")
    assert list(short.values()).count(short[verb]) == 1
    for words, command in commands_of(verb).items():
        assert command.help, f"{words} has no help"
        assert len(command.help.splitlines()[0]) <= 100, words
        for parameter in command.params:
            text = getattr(parameter, "help", None)
            where = f"{words} {parameter.opts}"
            assert text, f"{where} has no help"
            assert len(text) <= LONGEST, f"{where}: {len(text)} characters"
            assert "\n" not in text, where


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("generat", "No such command 'generat'. Did you mean 'generate'?"),
        ("fit tokenizr=pixel", "unknown key 'tokenizr'; did you mean tokenizer?"),
        ("launch tokenizr=pixel", "unknown key 'tokenizr'; did you mean tokenizer?"),
        ("doctor tokenizr=pixel", "unknown key 'tokenizr'; did you mean tokenizer?"),
        ("estimate --shape 2b --device abacus", "--device 'abacus' is not known"),
        ("estimate --mfu many", "--mfu"),
        ("layout-check --variants paded", "--variants 'paded'; expected some of"),
        ("ledger nowhere", "nowhere"),
        ("summary nowhere", "nowhere"),
        ("generate model --output a.jsonl", "expected either --input, or --task with --data"),
        ("generate model --outputt a.jsonl", "No such option: --outputt"),
        ("answers nowhere --output a.jsonl", "nowhere is neither a checkpoint"),
        ("words nowhere", "nowhere is neither a checkpoint"),
        ("speed nowhere", "nowhere is neither a checkpoint"),
        ("chat model --dtype int4", "dtype is 'int4', expected bf16 or fp32"),
        ("export nowhere out --lora none", "lora is 'none', expected merge or adapter"),
        ("export nowhere out", "nowhere is neither a checkpoint"),
        ("import nowhere out", "nowhere"),
        ("random-model out --shape huge", "shape is 'huge', expected one of tiny"),
        ("random-model out --corpus nowhere.json", "nowhere.json is not a JSON list"),
        ("score nope --data x --predictions y", "no task 'nope'"),
        ("tasks show nope --data x", "no task 'nope'"),
        ("compare nowhere elsewhere", "nowhere"),
        ("study nowhere --picture large --output out", "picture is 'large'; expected HEIGHTxWIDTH"),
        ("quickstart nowhere --resumed-from 1", "nowhere"),
        ("tokenizer show --tokenizer dct41", "Missing argument"),
        ("data prepare", "Missing argument"),
    ],
)
def test_a_wrong_setting_is_one_line_with_status_2(words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(*words.split())
    assert done.exit_code == 2, (done.output, done.exception)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert expected in done.stderr
    assert not done.stdout


def test_a_verb_of_verbs_shows_its_help_when_it_is_named_alone():
    done = invoke("tasks")
    assert "price-file" in done.output
    assert "error:" not in done.output
