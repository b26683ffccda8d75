"""Is a run that is started again the one that its folder holds, and over?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.run_files import CONFIG_NAME, read_config

#: how a run begins and where it lies changes nothing of what it was
_PLACES = ("trainer.resume", "log_dir")


class RunFinished(Exception):
    """All steps of a run are done, with the very settings that it is started with again."""

    def __init__(self, folder: Path, step: int, setting: str) -> None:
        super().__init__(
            f"{folder} is finished at step {step}, nothing is left to do: raise {setting} to go "
            "on, or use another experiment_name to begin anew"
        )


def changed_settings(run: RunConfig, folder: Path) -> list[str]:
    """Settings in which a start differs from the latest one in `folder`, such as "optim.lr 0.1
    instead of 0.2"; nothing where there are none.
    """
    try:
        before = dict(_leaves(asdict(read_config(folder))))
    except ValueError:
        return [f"what {CONFIG_NAME} says, which is missing or damaged"]
    now = dict(_leaves(asdict(run)))
    return [
        f"{name} {now.get(name)} instead of {before.get(name)}"
        for name in dict.fromkeys((*now, *before))
        if name not in _PLACES and now.get(name) != before.get(name)
    ]


def _leaves(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
