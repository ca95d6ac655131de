"""One mistake, and what the command answers to it."""

from __future__ import annotations

import contextlib
import io
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from edgepeft.cli.app import run
from tests.support.processes import start

ERROR, USAGE = 1, 2


@dataclass(frozen=True)
class Mistake:
    """A mistake.

    Attributes:
        title: What the user did.
        call: The command without ``edgepeft``, as it is typed in the folder of the world.
        words: What the answer must contain: what was wrong, and what leads to the right call.
        code: The exit code: 1 for an error, 2 for wrong usage.
        without: Packages that are not installed.
        mounted: Whether it needs a folder that the tests can only mount.
    """

    title: str
    call: str
    words: tuple[str, ...]
    code: int = ERROR
    without: tuple[str, ...] = ()
    mounted: bool = False


@dataclass(frozen=True)
class Answer:
    """Exit code, output and errors of the command."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error alone, as the last lines show it."""
        for start_ in ("\nerror: ", "\nError: "):
            _, found, after = f"\n{self.err}".rpartition(start_)
            if found:
                return f"{start_[1:]}{after}".strip()
        return self.err.strip()


def made(mistake: Mistake, world: Path) -> Answer:
    """Make the mistake in the folder of a world."""
    arguments = shlex.split(mistake.call)
    with contextlib.chdir(world):
        if mistake.without:
            return _apart(arguments, mistake.without)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(arguments)
    return Answer(code, out.getvalue(), err.getvalue())


def _apart(arguments: list[str], without: tuple[str, ...]) -> Answer:
    """Call the command in a process that cannot import some packages."""
    block = f"import sys; sys.modules.update(dict.fromkeys({without!r}))\n"
    process: subprocess.Popen[str] = start(f"{block}from edgepeft.cli import main; main()", *arguments)
    out, err = process.communicate()
    return Answer(process.returncode, out, err)
