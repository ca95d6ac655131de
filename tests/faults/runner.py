"""Runs one command with one fault, in a process of its own that is forked from one which has imported everything."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgepeft.cli.app import run
from edgepeft.errors import SystemFailure
from tests.faults import injector
from tests.faults.commands import Case, Stage
from tests.faults.injector import Operation
from tests.faults.powercut import BYTES_LOST, NAMES_LOST, Disk

LOST, TRACEBACK = "lost", "traceback"
_SECONDS = 60


@dataclass(frozen=True)
class Point:
    """The result of one fault: ``failure`` is ``""`` without one, else ``lost`` or ``traceback``."""

    command: str
    kind: str
    number: int
    failure: str = ""
    detail: str = ""


class Runner:
    """Runs points of one case.

    Args:
        case: the command.
        work: a folder of this process alone, in memory if possible.
        stages: where the stages of all cases are, as ``tests.faults.commands.build`` has made them.
    """

    def __init__(self, case: Case, work: Path, stages: Path) -> None:
        self._case, self._work, self._said = case, work / "work", work / "said"
        self._log = work / "log"
        self._stage = Stage(self._work, stages / case.name / "before", stages / case.name / "expected")
        self._operations = self._recorded()

    def points(self, every: int = 1, first: int = 0) -> Iterator[Point]:
        """All points, or every n-th of them from index ``first`` on."""
        planned = [*self._faults(), *self._cuts()]
        for act in planned[first::every]:
            yield act()

    def _faults(self) -> Iterator[Callable[[], Point]]:
        for number, done in enumerate(self._operations, 1):
            for kind in injector.KINDS:
                if done.name == "write" or kind not in injector.OF_WRITES:
                    yield lambda kind=kind, number=number: self._fault(kind, number)

    def _cuts(self) -> Iterator[Callable[[], Point]]:
        for number in range(len(self._operations) + 1):
            for kind in (NAMES_LOST, BYTES_LOST):
                yield lambda kind=kind, number=number: self._cut(kind, number)

    def _recorded(self) -> list[Operation]:
        self._fresh()
        self._before = Disk(self._work)
        handle = os.open(self._log, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        status = self._forked(lambda: self._run(0, 0, handle))
        os.close(handle)
        if status != 0:
            raise RuntimeError(f"{self._case.name} fails without any fault:\n{self._said.read_text()}")
        return list(injector.operations(self._log.read_bytes()))

    def _fault(self, kind: str, number: int) -> Point:
        self._fresh()
        status = self._forked(lambda: self._run(injector.KINDS[kind], number, -1))
        said = self._said.read_text(errors="replace")
        point = Point(self._case.name, kind, number)
        if status not in (0, 1, -signal.SIGKILL) or "Traceback" in said or f"error: {SystemFailure.code}" in said:
            return Point(*_key(point), TRACEBACK, f"exit code {status}\n{said}")
        return self._checked(point, done=status == 0)

    def _cut(self, kind: str, number: int) -> Point:
        disk = copy.deepcopy(self._before)
        for operation in self._operations[:number]:
            disk.apply(operation)
        shutil.rmtree(self._work, ignore_errors=True)
        disk.write_to(self._work, kind)
        return self._checked(Point(self._case.name, kind, number), done=number == len(self._operations))

    def _checked(self, point: Point, done: bool) -> Point:
        status = self._forked(lambda: self._check(done))
        if status == 0:
            return point
        return Point(*_key(point), LOST, self._said.read_text(errors="replace"))

    def _fresh(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        shutil.copytree(self._stage.before, self._work)

    def _run(self, kind: int, number: int, log: int) -> int:
        self._case.patch()
        injector.arm(self._work, kind, number, log)
        try:
            return run(self._case.arguments)
        finally:
            injector.disarm()

    def _check(self, done: bool) -> int:
        self._case.patch()
        if done:
            self._case.done(self._stage)
        self._case.kept(self._stage)
        self._case.again(self._stage)
        return 0

    def _forked(self, act: Callable[[], int]) -> int:
        """The exit code of a child that does this in the working folder, or minus the signal that ended it."""
        child = os.fork()
        if child == 0:
            code = 99
            try:
                signal.alarm(_SECONDS)
                said = os.open(self._said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                os.dup2(said, 1)
                os.dup2(said, 2)
                os.chdir(self._work)
                code = act()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)


def _key(point: Point) -> tuple[str, str, int]:
    return point.command, point.kind, point.number
