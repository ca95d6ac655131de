"""Draw the benches' results as SVG files: the same bytes for the same results and the same matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.pictures.deciding import measured
from benchmarks.targets import MEMORY, TIME

_STYLE = {
    "svg.hashsalt": "edgepeft",
    "svg.fonttype": "path",  # the same in every viewer
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",  # readable on a dark page
}
SIDES = {
    "torch-eager": ("PyTorch + peft", "#8c8c8c"),
    "edgepeft-fp32": ("edgepeft fp32", "#9fa8da"),
    "edgepeft-int8": ("edgepeft int8", "#3f51b5"),
    "edgepeft-int4": ("edgepeft int4", "#1a237e"),
}
"""The sides that are drawn, with their names and colours."""
ORACLE = "torch-eager"
Row = dict[str, Any]


def draw(name: str, results: dict[str, Any], folder: Path) -> Path:
    """Write the picture of a name, and return its path."""
    path = folder / f"{name}.svg"
    with pyplot.rc_context(_STYLE):
        figure = PICTURES[name](results)
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
        pyplot.close(figure)
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", "utf-8")
    return path


def relative(rows: Sequence[Row], figure: str) -> dict[str, dict[str, float]]:
    """By case and side: a figure divided by PyTorch's, of sides that took turns with it."""
    measured = [row for row in rows if "error" not in row and row["side"] in SIDES]
    oracles = {row["case"]: row for row in measured if row["side"] == ORACLE}
    found: dict[str, dict[str, float]] = {}
    for row in measured:
        oracle = oracles.get(row["case"])
        if oracle is not None and row["run"] == oracle["run"]:
            found.setdefault(row["case"], {})[row["side"]] = row[figure] / oracle[figure]
    return found


def steps(results: dict[str, Any]) -> Figure:
    """Time and memory of a step, relative to PyTorch, a group of bars for each network."""
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 5.8), sharey=True)
    for ax, of, title in zip(axes, (TIME, MEMORY), ("time of a step", "largest memory of the process"), strict=True):
        _grouped(ax, relative(results["rows"], of), title)
    axes[0].invert_yaxis()  # of both
    axes[0].legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(1.05, 1.08), ncols=len(SIDES))
    return figure


def _grouped(ax: Axes, groups: dict[str, dict[str, float]], title: str) -> None:
    height = 0.8 / len(SIDES)
    for index, (side, (label, colour)) in enumerate(SIDES.items()):
        for number, values in enumerate(groups.values()):
            if side in values:
                y = number + (index - (len(SIDES) - 1) / 2) * height
                named = label if number == 0 else None
                ax.barh(y, values[side], height * 0.9, color=colour, label=named)
                ax.text(values[side] + 0.01, y, f"{values[side]:.2f}", va="center", fontsize=7)
    ax.set_yticks(range(len(groups)), list(groups))
    ax.axvline(1, color="#8c8c8c", linewidth=0.8)
    ax.set_title(f"{title}, PyTorch = 1", fontsize=9)


def methods(results: dict[str, Any]) -> Figure:
    """Accuracy, the size of an update, time and memory: a line for each method, the most accurate one above."""
    methods = sorted(measured(results), key=lambda method: method.accuracy)
    panels = {
        "held-out accuracy, %": ([method.accuracy for method in methods], "{:.1f}"),
        "update, kB": ([method.update / 1e3 for method in methods], "{:,.0f}"),
        "time of a step, LoRA = 1": ([method.time for method in methods], "{:.2f}"),
        "largest memory, MB": ([method.memory for method in methods], "{:,.0f}"),
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(8, 4.6), sharey=True)
    for ax, (title, (values, written)) in zip(axes, panels.items(), strict=True):
        ax.set_title(title, fontsize=8)
        bars = ax.barh(range(len(methods)), values, 0.7, color="#3f51b5")
        ax.bar_label(bars, [written.format(value) for value in values], padding=2, fontsize=6.5)
        ax.tick_params(labelsize=7)
        ax.margins(x=0.25)
    axes[0].set_xlim(0, 105)
    axes[1].set_xscale("log")
    axes[0].set_yticks(range(len(methods)), [method.name for method in methods])
    figure.tight_layout()
    return figure


def language_models(results: dict[str, Any]) -> Figure:
    """Anonymous memory of a step of the 0.5 B shape by the length of its sequence, LoRA on q and v, without a limit."""
    figure, ax = pyplot.subplots(figsize=(8, 2.8))
    rows = [
        row
        for row in results["rows"]
        if row["shape"] == "qwen2.5-0.5b" and row["method"] == "qv" and "limit_mb" not in row and "anon_mb" in row
    ]
    names = {"torch-peft": "PyTorch + peft, fp32", "edgepeft-int8": "edgepeft int8", "edgepeft-int4": "edgepeft int4"}
    colours = {"torch-peft": "#8c8c8c", "edgepeft-int8": "#3f51b5", "edgepeft-int4": "#1a237e"}
    rows = [row for row in rows if row["side"] in names]
    for number, row in enumerate(rows):
        ax.barh(number, row["anon_mb"], 0.7, color=colours[row["side"]])
        ax.text(row["anon_mb"] + 20, number, f"{row['anon_mb']:,.0f} MB", va="center", fontsize=8)
    ax.set_yticks(range(len(rows)), [f"{names[row['side']]}, 1 x {row['length']}" for row in rows])
    ax.invert_yaxis()
    ax.set_xlabel("anonymous memory of the process, MB")
    return figure


PICTURES = {"steps": steps, "methods": methods, "language_models": language_models}
"""What draws each picture."""
