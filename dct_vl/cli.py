"""The command `dct-vl`: its verbs, each with the module that is imported when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from dct_vl.errors import ConfigError

#: panel of `dct-vl --help` → verb → (module:name, what it does). The name is that of a function
#: with Typer's annotations, or of a `typer.Typer` with verbs of its own
PANELS = {
    "Data and tokenizers": {
        "data": ("data_prep.cli:app", "Convert raw datasets to shards that Energon reads."),
        "tokenizer": ("dct_tokenizer.cli:app", "List, show, cost and check visual tokenizers."),
    },
    "Training": {
        "fit": ("dct_vl.verbs.fit:fit", "Train, or resume; -m sweeps over values."),
        "launch": ("dct_vl.verbs.fit:launch", "Check everything, then start all processes."),
        "doctor": ("dct_vl.verbs.fit:doctor", "Check versions, devices, data, model and disk."),
        "estimate": (
            "dct_vl.verbs.estimate:estimate_command",
            "Memory per GPU, time per step.",
        ),
        "layout-check": (
            "dct_vl.verbs.layout_check:layout_check",
            "Compare losses over all parallel layouts that fit.",
        ),
        "ledger": ("dct_vl.verbs.fit:ledger", "List which samples a run consumed, and how often."),
        "summary": ("dct_vl.verbs.fit:summary", "Write a run's summary page anew."),
    },
    "Models": {
        "generate": ("dct_vl.verbs.generate:generate", "Answer questions about images and videos."),
        "answers": (
            "dct_vl.verbs.generate:answers",
            "Answer a split; share of exact answers.",
        ),
        "chat": ("dct_vl.verbs.chat:chat", "Talk about images and videos."),
        "words": ("dct_vl.verbs.compare:words", "Share of answer words predicted right."),
        "speed": ("dct_vl.verbs.compare:speed", "Samples per second of a step, alone."),
        "export": ("dct_vl.verbs.models:export", "Write a Hugging Face folder from a checkpoint."),
        "import": ("dct_vl.verbs.models:import_", "Write a checkpoint from a Hugging Face folder."),
        "random-model": (
            "dct_vl.verbs.models:random_model",
            "Write a folder of random weights.",
        ),
    },
    "Results": {
        "score": ("dct_vl.verbs.score:score", "Score predictions of a benchmark."),
        "tasks": ("dct_vl.verbs.score:tasks_app", "List and show the benchmarks."),
        "compare": ("dct_vl.verbs.compare:compare", "Report on runs: accuracy against cost."),
        "study": ("dct_vl.verbs.compare:study", "Tabulate runs by tokenizer and seed."),
        "quickstart": ("dct_vl.verbs.compare:quickstart", "Write the quickstart's report."),
    },
}
#: verbs that take Hydra's words as they are
_WITH_SETTINGS = ("fit", "launch", "doctor")
#: what Typer raises about words that it cannot read; its releases keep it in different modules
_UsageError: Any = typer.BadParameter.__base__


class _OneLineErrors(TyperGroup):
    """Says what is wrong with a setting in one line, with exit status 2."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            status = super().main(*args, **{**options, "standalone_mode": False})
        except (ConfigError, _UsageError) as error:
            # empty where the help of a verb that was named alone has been shown
            text = str(error) if isinstance(error, ConfigError) else error.format_message()
            if text:
                print(f"error: {text}", file=sys.stderr)
            sys.exit(2)
        except typer.Abort:
            sys.exit(1)
        sys.exit(status or 0)


def app_for(words: Sequence[str]) -> typer.Typer:
    """The application, with the verb that `words` begin with; the others are listed, not loaded."""
    app = typer.Typer(
        cls=_OneLineErrors,
        help="Fine-tuning of Qwen2-VL with visual tokenizers that can be swapped.",
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(lambda: None)
    for panel, verbs in PANELS.items():
        for name, (target, text) in verbs.items():
            if words and words[0] == name:
                _add(app, name, panel, _load(target))
            else:
                app.command(name, help=text, rich_help_panel=panel)(_not_loaded)
    return app


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def _add(app: typer.Typer, name: str, panel: str, verb: Any) -> None:
    if isinstance(verb, typer.Typer):
        app.add_typer(verb, name=name, rich_help_panel=panel)
    else:
        settings = {"ignore_unknown_options": name in _WITH_SETTINGS}
        app.command(name, rich_help_panel=panel, context_settings=settings)(verb)


def _not_loaded() -> None:
    """Stands for a verb that was not asked for."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; always raises SystemExit."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    app_for(words)(args=words, prog_name="dct-vl")
