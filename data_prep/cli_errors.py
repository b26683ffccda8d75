"""How the commands end on an error that the user can mend: one line, status 1, no traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from data_prep.engine import EngineError
from data_prep.options import OptionError
from data_prep.sources import SourceError
from data_prep.workspace import WorkspaceError


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print errors of the package's own kinds as one line and exit with status 1."""
    try:
        yield
    except KeyboardInterrupt as error:
        typer.echo("interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from error
    except OSError as error:
        # a full disk or missing rights; what is finished stays, and a rerun goes on from there
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except (EngineError, OptionError, SourceError, WorkspaceError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
