"""Paths on the command line: what a command writes is no file that it reads, and is not in a bundle."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import click


class PathType(click.Path):
    """A path, which is not empty.

    Args:
        written: Whether the command writes it.
    """

    def __init__(self, *, written: bool = False) -> None:
        super().__init__(path_type=Path)
        self.written = written

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Return the path, or fail if it is none."""
        text = os.fspath(value)
        if not text or "\0" in text:
            self.fail("the path is empty." if not text else "a path has no null byte.", param, ctx)
        return super().convert(value, param, ctx)


PATH = PathType()
OUTPUT = PathType(written=True)


def check_outputs(context: click.Context) -> None:
    """Refuse a path that would be written if another option reads it, or if it is inside a bundle.

    Raises:
        click.BadParameter: There is such a path.
    """
    from edgepeft_runtime.bundle.folder import is_bundle

    given = [
        (param, Path(value))
        for param in context.command.params
        if isinstance(param.type, PathType) and (value := context.params.get(param.name or "")) is not None
    ]
    for param, path in given:
        if not _written(param):
            continue
        for other, read in given:
            if other is not param and _same(path, read):
                raise click.BadParameter(f"{path} is also {_name(other)}: choose another path.", context, param)
        bundle = next(filter(is_bundle, path.absolute().parents), None)
        if bundle is not None:
            text = f"{path} is inside a bundle, which can then not be opened: choose another path."
            raise click.BadParameter(text, context, param)


def checking(command: click.Command) -> None:
    """Let a command check its outputs before it runs."""
    run = command.callback
    if run is None:
        return

    def checked(**options: Any) -> object:
        check_outputs(click.get_current_context())
        return run(**options)

    command.callback = checked


def _written(param: click.Parameter) -> bool:
    return isinstance(param.type, PathType) and param.type.written


def _name(param: click.Parameter) -> str:
    return param.human_readable_name if isinstance(param, click.Argument) else param.opts[0]


def _same(first: Path, second: Path) -> bool:
    with suppress(OSError):
        return first.samefile(second)
    return first.absolute() == second.absolute()
