"""Shows a profile as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgepeft_runtime.figures import percent, size
from edgepeft_runtime.profiling.advice import Advice
from edgepeft_runtime.profiling.summary import MemoryUse, Row, Summary

_ROWS = 12
"""Rows of a table."""


def milliseconds(seconds: float) -> str:
    """Return a time with three digits or more: ``0.012 ms``, ``1.23 ms``, ``123 ms``."""
    value = 1e3 * seconds
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f} ms"


def measured(summary: Summary) -> str:
    """Return what was measured, in one line."""
    sizes = ", ".join(f"{name} {count}" for name, count in summary.sizes.items())
    cores = f"{summary.threads} thread{'s' if summary.threads > 1 else ''} on {summary.cores} cores"
    padding = f"; {percent(summary.padding)} of the tokens are padding" if summary.padding else ""
    return f"median of {summary.steps} steps; {sizes}; {cores}{padding}"


def memory_rows(memory: MemoryUse) -> list[tuple[str, int]]:
    """Return the parts of the memory that are known, in bytes."""
    rows = [
        ("anonymous memory at its peak", memory.anonymous),
        ("before training: Python, libraries, data", memory.before),
        ("activations alive at the peak, computed", memory.activations),
        (f"onnxruntime's arena, most in use: in {memory.fullest}", memory.arena),
        ("parameters, optimizer state, gradients", memory.state),
        ("frozen weights (file)", memory.weights),
        ("file pages at their peak", memory.file),
    ]
    return [(name, count) for name, count in rows if count is not None]


def table(summary: Summary, advice: Sequence[Advice]) -> str:
    """Return the profile as tables."""
    return "\n".join(_lines(summary, advice))


def _lines(summary: Summary, advice: Sequence[Advice]) -> Iterator[str]:
    yield f"a step takes {milliseconds(summary.step)} ({measured(summary)})"
    between, outside = summary.sessions - summary.kernels, max(summary.profiled - summary.sessions, 0.0)
    yield (
        f"with the profiler {milliseconds(summary.profiled)}: {milliseconds(summary.kernels)} in kernels, "
        f"{milliseconds(between)} between them, {milliseconds(outside)} outside of onnxruntime"
    )
    for title, rows in (
        ("pass", summary.passes),
        ("kind of work", summary.kinds),
        ("operator", summary.operators),
        ("module", summary.modules),
        ("node", summary.nodes),
    ):
        yield ""
        yield from _table(title, rows, summary.kernels)
    yield ""
    yield "memory"
    yield from (f"{size(count):>12}  {name}" for name, count in memory_rows(summary.memory))
    yield ""
    yield "what would help" if advice else "nothing stands out"
    yield from (f"  {number}. {item.text}" for number, item in enumerate(advice, start=1))


def _table(title: str, rows: Sequence[Row], whole: float) -> Iterator[str]:
    yield f"{'time':>12}{'':>9}{'kernels':>9}{'written':>12}{'in use':>12}  {title}"
    for row in rows[:_ROWS]:
        name = f"{row.name}  {row.detail}" if row.detail else row.name
        part = percent(row.seconds / max(whole, 1e-9))
        in_use = "-" if row.in_use is None else size(row.in_use)
        yield f"{milliseconds(row.seconds):>12}{part:>9}{row.kernels:>9}{size(row.written):>12}{in_use:>12}  {name}"
    if len(rows) > _ROWS:
        rest = sum(row.seconds for row in rows[_ROWS:])
        yield f"{milliseconds(rest):>12}{percent(rest / max(whole, 1e-9)):>9}{'':>33}  {len(rows) - _ROWS} others"
