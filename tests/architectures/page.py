"""The list of results, and the page that is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.architectures.check import EPS, LR, STEPS, TOLERANCE, Result
from tests.architectures.configs import Case

PAGE = Path(__file__).parents[2] / "docs" / "ARCHITECTURES.md"
RESULTS = Path(__file__).parent / "results.tsv"

_INTRODUCTION = """# Classes of transformers

Made by `python -m tests.architectures`. Each class has a small configuration and random weights, and is prepared from
a directory that `save_pretrained` has written. It is right where {steps} steps of AdamW (learning rate {lr:g}, eps
{eps:g}) on batches of changing sizes have the losses that transformers itself computes (`model(…, labels=…).loss`;
relative difference at most {tolerance:g}), and where the model with the merged update has the outputs of the model that
torch has trained (the same). LoRA trains, unless another method is named.

**{right} of {run} are right.** {left}
"""


def read_results() -> dict[str, Result]:
    """Return the results so far, by class."""
    if not RESULTS.is_file():
        return {}
    rows = [line.split("\t") for line in RESULTS.read_text("utf-8").splitlines()]
    return {name: Result(status, task, detail) for name, status, task, detail in rows}


def write_results(results: Mapping[str, Result]) -> None:
    """Write results, and those that another process has written, in the order of the classes' names."""
    results = {**read_results(), **results}
    rows = [f"{name}\t{r.status}\t{r.task}\t{r.detail}" for name, r in sorted(results.items())]
    RESULTS.write_text("\n".join(rows) + "\n", encoding="utf-8")


def page(cases: Sequence[Case], results: Mapping[str, Result]) -> str:
    """Return the page: a table for each task, and the reasons of those that are refused."""
    listed = len(cases)
    cases = [case for case in cases if case.name in results]
    right = sum(results[case.name].status == "right" for case in cases)
    left = f"{listed - len(cases)} more are listed and were not run." if listed > len(cases) else ""
    text = _INTRODUCTION.format(
        steps=STEPS, lr=LR, eps=EPS, tolerance=TOLERANCE, right=right, run=len(cases), left=left
    )
    tasks = sorted({results[case.name].task for case in cases} - {""})
    for task in tasks:
        own = [case for case in cases if results[case.name].task == task]
        text += f"\n## {task}\n\n| class | method | result |\n|---|---|---|\n"
        text += "".join(f"| `{case.name}` | {_method(case)} | {_shown(results[case.name])} |\n" for case in own)
    others = [case for case in cases if not results[case.name].task]
    if others:
        text += "\n## Refused\n\n| class | why |\n|---|---|\n"
        text += "".join(f"| `{case.name}` | {_shown(results[case.name])} |\n" for case in others)
    return text


def _method(case: Case) -> str:
    return case.method if case.fixed is None else f"{case.method}, texts of {case.fixed} tokens"


def _shown(result: Result) -> str:
    detail = result.detail.replace("|", "\\|")
    return detail if result.status == "right" else f"{result.status}: {detail}"
