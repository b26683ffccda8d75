"""The verbs of `dct-vl`; heavy imports happen when a verb runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dct_vl.errors import ConfigError


@contextmanager
def one_line_errors(*also: type[Exception]) -> Iterator[None]:
    """ValueErrors, and errors of the given types, become a `ConfigError`: one line, status 2."""
    try:
        yield
    except (ValueError, *also) as error:  # type: ignore[misc]
        raise ConfigError(str(error)) from error
