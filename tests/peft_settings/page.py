"""The page of results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.architectures.check import Result
from tests.peft_settings.cases import Case
from tests.peft_settings.check import LR, STEPS, TOLERANCE

PAGE = Path(__file__).parents[2] / "docs" / "PEFT.md"

_INTRODUCTION = """# Adapters of peft

Made by `python -m tests.peft_settings`, with peft {version}. Each adapter is attached by peft to a small network, its
values are changed at random, and it is prepared as it is. It is right where {steps} steps of SGD (learning rate {lr:g})
have peft's losses, and where the outputs afterwards are those of the model that torch has trained (relative difference
at most {tolerance:g} each).

**{right} of {count} are right.** {invalid}

| kind | network | settings | result |
|---|---|---|---|
"""


def page(cases: Sequence[Case], results: Mapping[str, Result]) -> str:
    """Return the page. Settings that peft itself refuses are left out and counted."""
    valid = [case for case in cases if results[case.name].status != "invalid"]
    right = sum(results[case.name].status == "right" for case in valid)
    left = len(cases) - len(valid)
    text = _INTRODUCTION.format(
        version=version("peft"),
        steps=STEPS,
        lr=LR,
        tolerance=TOLERANCE,
        right=right,
        count=len(valid),
        invalid=f"{left} more fail in peft itself, and are not listed." if left else "",
    )
    return text + "".join(_row(case, results[case.name]) for case in valid)


def _row(case: Case, result: Result) -> str:
    detail = result.detail if result.status == "right" else f"{result.status}: {result.detail}"
    settings = json.dumps(dict(case.settings)).replace("|", "\\|")
    return f"| {case.kind} | {case.network} | `{settings}` | {detail.replace('|', chr(92) + '|')} |\n"
