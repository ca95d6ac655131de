"""How much the command writes: ``-q`` errors only, ``-v`` also the debug lines of the libraries' loggers."""

from __future__ import annotations

import logging
from typing import TypeVar

import click

from edgepeft.cli.paths import checking
from edgepeft.cli.screen.line import end_line

_QUIET = "edgepeft.quiet"
_LOGGERS = ("edgepeft", "edgepeft_export", "edgepeft_runtime")


class _Lines(logging.Handler):
    """Writes records to standard error as the other lines of the command."""

    def emit(self, record: logging.LogRecord) -> None:
        end_line()
        click.echo(self.format(record), err=True)


def is_quiet() -> bool:
    """Whether the running command was called with ``-q``."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_QUIET))


def say(text: str, *, err: bool = False) -> None:
    """Write what a command did, unless ``-q`` is given. What a command was asked for is written by ``click.echo``."""
    if not is_quiet():
        end_line()
        click.echo(text, err=err)


C = TypeVar("C", bound=click.Command)


def with_options(command: C) -> C:
    """Add ``-q``, ``-v`` (before or after its name) and the check of its outputs to a command, once."""
    if not any("--quiet" in param.opts for param in command.params):
        checking(command)
        command.params += _options()
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        with_options(inner)
    return command


def _options() -> list[click.Parameter]:
    return [
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_be_quiet,
            help="Write errors only, and results that have no other destination.",
        ),
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=_log,
            help="Write debug lines with their times to standard error.",
        ),
    ]


def _be_quiet(context: click.Context, _option: click.Parameter, given: bool) -> None:
    if given:
        context.meta[_QUIET] = True


def _log(context: click.Context, _option: click.Parameter, given: bool) -> None:
    """Show the records of edgepeft's loggers for as long as the command runs."""
    if not given or context.find_root().meta.get(__name__):
        return
    root = context.find_root()
    root.meta[__name__] = True
    handler = _Lines()
    handler.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d %(name)s: %(message)s", "%H:%M:%S"))
    for logger in map(logging.getLogger, _LOGGERS):
        root.call_on_close(lambda logger=logger, level=logger.level: _restore(logger, handler, level))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)


def _restore(logger: logging.Logger, handler: logging.Handler, level: int) -> None:
    logger.removeHandler(handler)
    logger.setLevel(level)
