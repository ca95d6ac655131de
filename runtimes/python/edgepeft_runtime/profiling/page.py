"""Shows a profile as one HTML page. It needs no other file, and is well-formed XML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from edgepeft_runtime.figures import percent, size
from edgepeft_runtime.profiling import chart
from edgepeft_runtime.profiling.advice import Advice
from edgepeft_runtime.profiling.categories import ELEMENTWISE, LAYOUT, LOOPS, PRODUCTS, REDUCTIONS, ROUNDING
from edgepeft_runtime.profiling.layers import AGAIN, BACKWARD, FORWARD, UPDATE
from edgepeft_runtime.profiling.summary import Row, Summary
from edgepeft_runtime.profiling.text import measured, memory_rows, milliseconds

_KINDS = {
    PRODUCTS: "#3b7ea1",
    ROUNDING: "#e08e45",
    REDUCTIONS: "#6a9f58",
    ELEMENTWISE: "#a7c957",
    LAYOUT: "#9a8fb0",
    LOOPS: "#c05a5a",
}
_PASSES = {FORWARD: "#3b7ea1", AGAIN: "#e08e45", BACKWARD: "#3b9ea1", UPDATE: "#9a8fb0"}
_OPERATORS, _MODULES = 15, 25
_VIEWPORT = '<meta name="viewport" content="width=device-width"/>'

_STYLE = """
:root { color-scheme: light dark; --text: #222; --soft: #5d5d5d; --back: #fcfcfa; --tile: #eef1f2; --rule: #deded8; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e3; --soft: #a8a8a4; --back: #17191b; --tile: #24282b;
  --rule: #3a3f43; } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1em;
  color: var(--text); background: var(--back); }
h1 { margin-bottom: 0; }
h2 { margin: 1.8em 0 .4em; }
.of { color: var(--soft); margin-top: .2em; }
.figures { display: flex; flex-wrap: wrap; gap: 1em; }
.figures div { background: var(--tile); border-radius: 8px; padding: .6em 1em; }
.figures b { display: block; font-size: 1.5em; }
li { margin: .3em 0; }
li small { color: var(--soft); }
svg { width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--text); }
.scroll { overflow-x: auto; }
.scroll svg { min-width: 44em; }
.key span { display: inline-block; margin-right: 1em; }
.key i { display: inline-block; width: .8em; height: .8em; margin-right: .3em; border-radius: 2px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: right; padding: .15em .6em; border-bottom: 1px solid var(--rule); }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; }
details { margin-top: 1em; }
summary { cursor: pointer; }
"""


def page(bundle: str, summary: Summary, advice: Sequence[Advice]) -> str:
    """Return the page."""
    title = f"A training step of {escape(bundle)}"
    body = [
        f'<h1>{title}</h1><p class="of">{escape(measured(summary))}</p>',
        _figures(summary),
        _advice(advice),
        _section("Time by block", _key(_KINDS), _bars(summary.blocks, _KINDS, summary.kernels)),
        _section("Time by pass", "", _bars(summary.passes, _PASSES, summary.kernels)),
        _section("Time by operator", "", _bars(summary.operators[:_OPERATORS], _PASSES, summary.kernels)),
        _section("Time by module", _key(_PASSES), _bars(summary.modules[:_MODULES], _PASSES, summary.kernels)),
        _memory(summary),
        _table("All modules", summary.modules, summary.kernels),
        _table("All operators", summary.operators, summary.kernels),
        _table("Calls of graphs, in order", summary.calls, summary.kernels),
        _table("The longest nodes", summary.nodes, summary.kernels),
    ]
    head = f'<meta charset="utf-8"/>{_VIEWPORT}<title>{title}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _figures(summary: Summary) -> str:
    kernels = sum(row.kernels for row in summary.operators)
    figures = {
        "a step": milliseconds(summary.step),
        f"in {kernels} kernels": milliseconds(summary.kernels),
        "anonymous memory at its peak": size(summary.memory.anonymous),
        "frozen weights": size(summary.memory.weights),
    }
    return (
        f'<div class="figures">{"".join(f"<div><b>{value}</b>{name}</div>" for name, value in figures.items())}</div>'
    )


def _advice(advice: Sequence[Advice]) -> str:
    items = "".join(
        f"<li>{escape(item.text)} <small>({item.saves}, at most {percent(item.fraction)})</small></li>"
        for item in advice
    )
    return (
        f"<h2>What would help</h2><ol>{items}</ol>" if advice else "<h2>What would help</h2><p>Nothing stands out.</p>"
    )


def _section(title: str, key: str, drawn: str) -> str:
    return f"<h2>{title}</h2>{key}{drawn}"


def _key(colors: Mapping[str, str]) -> str:
    items = (f'<span><i style="background:{color}"></i>{name}</span>' for name, color in colors.items())
    return f'<p class="key">{"".join(items)}</p>'


def _bars(rows: Sequence[Row], colors: Mapping[str, str], whole: float) -> str:
    text = {row.name: f"{milliseconds(row.seconds)}, {percent(row.seconds / max(whole, 1e-9))}" for row in rows}
    return chart.bars(rows, colors, text)


def _memory(summary: Summary) -> str:
    parts = memory_rows(summary.memory)
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{size(count)}</td></tr>" for name, count in parts)
    drawn = ""
    if summary.timeline:
        drawn = f'<p class="of">onnxruntime\'s arena in the course of a step</p>{chart.memory(summary.timeline)}'
    return f"<h2>Memory</h2>{drawn}<table>{rows}</table>"


def _table(title: str, rows: Sequence[Row], whole: float) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("name", "time", "of kernels", "kernels", "written", "in use"))
    lines = (
        f"<tr><td>{escape(f'{row.name} {row.detail}'.strip())}</td><td>{milliseconds(row.seconds)}</td>"
        f"<td>{percent(row.seconds / max(whole, 1e-9))}</td><td>{row.kernels}</td><td>{size(row.written)}</td>"
        f"<td>{'-' if row.in_use is None else size(row.in_use)}</td></tr>"
        for row in rows
    )
    return f"<details><summary>{title}</summary><table><tr>{head}</tr>{''.join(lines)}</table></details>"
