"""Decide from the measured methods which one fits a wish, and write it as a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

NEAR = 2.0
"""Points of accuracy below LoRA that still count as as good."""


@dataclass(frozen=True)
class Measured:
    """The figures of one method.

    Attributes:
        accuracy: held out, mean over seeds, in percent.
        update: bytes.
        time: of a step, relative to LoRA.
        memory: peak of the process in MB.
    """

    name: str
    accuracy: float
    update: int
    time: float
    memory: float


def measured(results: dict[str, Any]) -> list[Measured]:
    """The methods whose accuracy and speed are known."""
    return [
        Measured(
            name,
            100 * statistics.mean(results["accuracy"][name].values()),
            found["update_bytes"],
            found["ratio"],
            found["peak_mb"],
        )
        for name, found in results["speed"].items()
        if results["accuracy"].get(name)
    ]


def table(results: dict[str, Any]) -> list[str]:
    """A line for each wish: the method that the figures choose."""
    all_ = measured(results)
    (lora,) = (method for method in all_ if method.name == "lora")
    good = [method for method in all_ if method.accuracy >= lora.accuracy - NEAR]
    small = [method for method in all_ if method.update < 1_000_000]
    wishes: list[tuple[str, Sequence[Measured], Callable[[Measured], float]]] = [
        ("the best accuracy", all_, lambda method: -method.accuracy),
        ("the best accuracy with an update below 1 MB", small, lambda method: -method.accuracy),
        ("the smallest update", good, lambda method: method.update),
        ("the fastest step", good, lambda method: method.time),
        ("the least memory", good, lambda method: method.memory),
        ("the fastest step, whatever the accuracy", all_, lambda method: method.time),
    ]
    lines = [
        "| you want | method | accuracy, % | update, kB | time of a step | peak, MB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    chosen = [(wish, min(among, key=key)) for wish, among, key in wishes]
    return [*lines, *(_row(wish, method) for wish, method in [*chosen, ("for comparison", lora)])]


def _row(wish: str, method: Measured) -> str:
    figures = f"{method.accuracy:.1f} | {method.update / 1e3:,.0f} | {method.time:.2f} x | {method.memory:,.0f}"
    return f"| {wish} | `{method.name}` | {figures} |"
