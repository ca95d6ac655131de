"""Warnings of edgepeft as lines of the command."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from edgepeft.cli.screen.line import end_line
from edgepeft.cli.screen.verbosity import is_quiet
from edgepeft_runtime.notices import EdgepeftWarning


@contextmanager
def notices_as_lines() -> Iterator[None]:
    """Print each notice once, as one line on standard error; other warnings are shown as usual."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", EdgepeftWarning)
        others, seen = warnings.showwarning, set[str]()

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, EdgepeftWarning):
                others(message, category, filename, lineno, file, line)
            elif str(message) not in seen and not is_quiet():
                seen.add(str(message))
                end_line()
                click.echo(f"note: {message}", err=True)

        warnings.showwarning = show
        yield
