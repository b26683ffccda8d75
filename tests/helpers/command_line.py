"""`dct-vl VERB …` in this process."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from dct_vl.cli import app_for


def invoke(*words: object, input: str | bytes | None = None) -> Any:
    """Run a verb; the result has exit_code, output, stdout, stderr and exception."""
    arguments = [str(word) for word in words]
    return CliRunner().invoke(app_for(arguments), arguments, input=input, env={"COLUMNS": "400"})
