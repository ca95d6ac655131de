"""``docs/FUZZING.md``."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from tests.fuzz.measure import BAR_MEGABYTES, BAR_SECONDS, Found

PAGE = Path(__file__).parents[2] / "docs" / "FUZZING.md"
PACKAGES = ("numpy", "onnxruntime", "pillow", "flatbuffers")


def page(found: Mapping[str, Found], seed: int) -> str:
    """The text of the page.

    Args:
        found: results by what was read.
        seed: of the changes.
    """
    total = sum(one.inputs for one in found.values())
    lines = [
        "# Readers and changed files",
        "",
        "Written by `python -m tests.fuzz --inputs N --page docs/FUZZING.md`. Each reader is given files that the",
        "project's own writers made, changed at random: their bytes, and what their format is made of (fields of JSON",
        "and protobuf, members of archives; sealed anew, so that the change is found by what reads it). A reader must",
        "take the file or refuse it with an `EdgepeftError`. *Slowest* is the CPU time of one input, *largest* what",
        f"the process grew by while it read one; the bars are {BAR_SECONDS:g} s and {BAR_MEGABYTES:g} MB.",
        "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {_machine()}; {_versions()}; seed {seed}.",
        "",
        "| reader | inputs | refused | other errors | slowest, ms | largest, MB |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {what} | {one.inputs:,} | {one.refused:,} | {one.escapes} | {one.seconds * 1e3:.0f} | "
            f"{one.megabytes:.0f} |"
            for what, one in found.items()
        ),
        "",
        f"{total:,} inputs in all, {sum(one.escapes for one in found.values())} errors that are none of ours.",
    ]
    return "\n".join(lines) + "\n"


def _machine() -> str:
    return f"{os.cpu_count()} cores of {platform.machine()}, {platform.system()}"


def _versions() -> str:
    packages = [f"{name} {version(name)}" for name in PACKAGES]
    return ", ".join([f"Python {platform.python_version()}", *packages])
