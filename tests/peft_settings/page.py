"""The page of results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.architectures.check import Result
from tests.peft_settings.cases import Case
from tests.peft_settings.check import LR, RATES, STEPS, TOLERANCE

PAGE = Path(__file__).parents[2] / "docs" / "PEFT.md"
RESULTS = Path(__file__).parent / "results.tsv"

_INTRODUCTION = """# Adapters of peft

Made by `python -m tests.peft_settings`, with peft {version}. Each adapter is attached by peft to a small network, its
values are changed at random, and it is prepared as it is. It is right where {steps} steps of SGD (learning rate
{lr:g}; {rates}) have peft's losses, and where the outputs afterwards are those of the model that torch has trained
(relative difference at most {tolerance:g} each).

**{right} of {count} are right.** {others}

| kind | network | settings | result |
|---|---|---|---|
"""


def read_results() -> dict[str, Result]:
    """Return the results so far, by case."""
    if not RESULTS.is_file():
        return {}
    rows = [line.split("\t") for line in RESULTS.read_text("utf-8").splitlines()]
    return {name: Result(status, name.partition(" ")[0], detail) for name, status, detail in rows}


def write_results(results: Mapping[str, Result]) -> None:
    """Write results, in the order in which they came."""
    rows = [f"{name}\t{result.status}\t{result.detail}" for name, result in results.items()]
    RESULTS.write_text("\n".join(rows) + "\n", encoding="utf-8")


def page(cases: Sequence[Case], results: Mapping[str, Result]) -> str:
    """Return the page. Settings that peft itself refuses are left out and counted."""
    tried = [case for case in cases if case.name in results]
    valid = [case for case in tried if results[case.name].status != "invalid"]
    right = sum(results[case.name].status == "right" for case in valid)
    facts = (
        (len(tried) - len(valid), "fail in peft itself"),
        (len(cases) - len(tried), "are listed and were not run"),
    )
    text = _INTRODUCTION.format(
        version=version("peft"),
        steps=STEPS,
        lr=LR,
        rates=", ".join(f"{kind}: {rate:g}" for kind, rate in RATES.items()),
        tolerance=TOLERANCE,
        right=right,
        count=len(valid),
        others=" ".join(f"{count} more {what}." for count, what in facts if count),
    )
    return text + "".join(_row(case, results[case.name]) for case in valid)


def _row(case: Case, result: Result) -> str:
    detail = result.detail if result.status == "right" else f"{result.status}: {result.detail}"
    settings = json.dumps(dict(case.settings)).replace("|", "\\|")
    return f"| {case.kind} | {case.network} | `{settings}` | {detail.replace('|', chr(92) + '|')} |\n"
