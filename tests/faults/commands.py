"""The commands that faults are tried on: the files before, and the conditions afterwards."""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepeft.cli.app import run
from edgepeft_runtime.files import staging
from tests.fleet.fleets import Fleet
from tests.support.tiny_bundle import build as build_bundle
from tests.support.tiny_bundle import examples


@dataclass(frozen=True)
class Stage:
    """The folder of a command: its workspace, its state before, and its state after an undisturbed run."""

    work: Path
    before: Path
    expected: Path


Check = Callable[[Stage], None]


def _nothing(_stage: Stage) -> None:
    """Nothing is asked."""


@dataclass(frozen=True)
class Case:
    """A command that faults are tried on. A check raises where something is lost.

    Args:
        name: on the page, and of its folder.
        arguments: what is typed; paths are relative to the folder, but for the bundle.
        make: makes the folder, of a fleet that has a host.
        kept: right after the fault: what was there before is there, or what is better.
        again: runs the same command, which must do its work now.
        done: where the command had ended well: what it said is true, also after a power cut.
        portable: as on a system that cannot exchange two folders in one step.
    """

    name: str
    arguments: list[str]
    make: Callable[[Fleet], object]
    kept: Check
    again: Check
    done: Check = _nothing
    portable: bool = False

    def patch(self) -> None:
        """Make the process one of such a system."""
        if self.portable:
            staging._exchange = lambda _one, _other: False


def again(case_arguments: list[str], codes: tuple[int, ...] = (0,)) -> str:
    """Run a command that must end with one of these codes; return its output."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run(case_arguments)
    assert code in codes, f"the same command again ends with {code}:\n{said.getvalue()}"
    return said.getvalue()


def same(stage: Stage, *names: str) -> None:
    """Files that are, byte for byte, those of an undisturbed run."""
    for name in names:
        found, expected = stage.work / name, stage.expected / name
        assert found.exists(), f"{name} is not there"
        assert found.read_bytes() == expected.read_bytes(), f"{name} differs from that of an undisturbed run"


def old_or_new(stage: Stage, *names: str) -> None:
    """Files that were there: the old content or the new one."""
    for name in names:
        assert (stage.work / name).exists(), f"{name} is gone"
        found = (stage.work / name).read_bytes()
        assert found in ((stage.before / name).read_bytes(), (stage.expected / name).read_bytes()), f"{name} is broken"


def build(stages: Path, cases: Callable[[Path], list[Case]]) -> list[Case]:
    """Make the folders of all cases, and run each command once without a fault. It opens sessions: do not fork after.

    Args:
        stages: a new folder for them.
        cases: makes the cases, given the bundle.
    """
    bundle = build_bundle(stages / "bundle", provenance={"method": "head"})
    made = cases(bundle)
    for case in made:
        before, expected = stages / case.name / "before", stages / case.name / "expected"
        before.mkdir(parents=True)
        np.savez(before / "data.npz", allow_pickle=False, **examples(32))
        case.make(Fleet.begin(before, bundle))
        shutil.copytree(before, expected)
        with contextlib.chdir(expected):
            again(case.arguments)
    return made


def now() -> float:
    """The time, for rounds that are not to have expired."""
    return time.time()
