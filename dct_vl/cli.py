"""The command `dct-vl`: every verb, and the module that is imported when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from dct_vl.errors import ConfigError

#: panel of `dct-vl --help` → verb → (module:name, what it does). The name is that of a function
#: with Typer's annotations, or of a `typer.Typer` with verbs of its own
PANELS = {
    "Data and tokenizers": {
        "data": ("data_prep.cli:app", "Raw datasets to shards that Energon reads."),
        "tokenizer": ("dct_tokenizer.cli:app", "List, show, cost and check visual tokenizers."),
    },
    "Training": {
        "fit": ("dct_vl.verbs.fit:fit", "Train, or resume; -m sweeps over values."),
        "launch": ("dct_vl.verbs.fit:launch", "Check everything, then start all processes."),
        "doctor": ("dct_vl.verbs.fit:doctor", "Check versions, devices, data, model and disk."),
        "estimate": ("dct_vl.verbs.estimate:estimate_command", "Memory a GPU, time a step."),
        "layout-check": (
            "dct_vl.verbs.layout_check:layout_check",
            "The same losses in every parallel layout that fits.",
        ),
        "ledger": ("dct_vl.verbs.runs:ledger", "Which samples a run consumed, and how often."),
        "summary": ("dct_vl.verbs.runs:summary", "Write a run's page anew."),
    },
    "Models": {
        "generate": ("dct_vl.verbs.generate:generate", "Answer questions about images and videos."),
        "answers": ("dct_vl.verbs.evaluation:answers", "Answer a split, compare with the truth."),
        "chat": ("dct_vl.verbs.chat:chat", "Talk about images and videos."),
        "words": ("dct_vl.verbs.evaluation:words", "Words predicted right, given those before."),
        "speed": ("dct_vl.verbs.evaluation:speed", "Samples a second of a step, alone."),
        "export": ("dct_vl.verbs.evaluation:export", "A Hugging Face folder from a checkpoint."),
        "import": ("dct_vl.verbs.evaluation:import_", "A checkpoint from a Hugging Face folder."),
        "random-model": ("dct_vl.verbs.random_model:random_model", "A folder of random weights."),
    },
    "Results": {
        "score": ("dct_vl.verbs.score:score", "Score predictions of a benchmark."),
        "tasks": ("dct_vl.verbs.score:tasks_app", "Benchmarks that can be scored."),
        "compare": ("dct_vl.verbs.compare:compare", "Runs side by side: accuracy against cost."),
        "study": ("dct_vl.verbs.evaluation:study", "A table of runs by tokenizer and seed."),
        "quickstart": ("dct_vl.verbs.evaluation:quickstart", "The report of the quickstart."),
    },
}
#: verbs that take Hydra's words as they are
_WITH_SETTINGS = ("fit", "launch", "doctor")
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE …", help="Settings; dct_vl/runs/config/schema.py has them."),
]


def app_for(words: Sequence[str]) -> typer.Typer:
    """The application, with the verb that `words` begin with; the others are listed, not loaded."""
    app = typer.Typer(
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
    elif name in _WITH_SETTINGS:
        settings = {"ignore_unknown_options": True}
        passing = _passing_words(verb)
        app.command(name, help=verb.__doc__, rich_help_panel=panel, context_settings=settings)(
            passing
        )
    else:
        app.command(name, rich_help_panel=panel)(verb)


def _not_loaded() -> None:
    """Stands for a verb that was not asked for."""


def _passing_words(verb: Callable[[list[str]], None]) -> Callable[..., None]:
    def passing(words: Words = None) -> None:
        verb(words or [])

    return passing


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; a setting that cannot work is one line and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        app_for(words)(args=words, prog_name="dct-vl")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
