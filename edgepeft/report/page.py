"""The report as one HTML page: no other file, no network, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from edgepeft.report.curves import curves
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.engine.evaluate import Evaluation
from edgepeft_runtime.figures import number, percent, size
from edgepeft_runtime.profiling import chart
from edgepeft_runtime.profiling.layers import AGAIN, BACKWARD, FORWARD, UPDATE
from edgepeft_runtime.profiling.profile import Profile
from edgepeft_runtime.profiling.text import measured, memory_rows, milliseconds
from edgepeft_runtime.train.records import FitReport
from edgepeft_runtime.train.run import FitState
from edgepeft_runtime.train.saved import SavedRun

_PASSES = {FORWARD: "#3b7ea1", AGAIN: "#e08e45", BACKWARD: "#4aa3a5", UPDATE: "#9a8fb0"}
_LAYERS, _TENSORS = 20, 12

_STYLE = """
:root { color-scheme: light dark; --text: #222; --soft: #5d5d5d; --back: #fcfcfa; --tile: #eef1f2; --rule: #deded8;
  --line0: #1f5673; --line1: #c2571a; --cell: 31 86 115; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e3; --soft: #a8a8a4; --back: #17191b; --tile: #24282b;
  --rule: #3a3f43; --line0: #6db6da; --line1: #f0965a; --cell: 109 182 218; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1em;
  color: var(--text); background: var(--back); }
h1 { margin-bottom: 0; overflow-wrap: anywhere; }
h2 { margin: 1.8em 0 .4em; }
.of { color: var(--soft); margin-top: .2em; }
.figures { display: flex; flex-wrap: wrap; gap: 1em; }
.figures div { background: var(--tile); border-radius: 8px; padding: .6em 1em; }
.figures b { display: block; font-size: 1.5em; }
svg { width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--text); }
.grid { stroke: var(--rule); }
.line { fill: none; stroke-width: 2; }
.line0 { stroke: var(--line0); } .dot.line0 { fill: var(--line0); }
.line1 { stroke: var(--line1); } .dot.line1 { fill: var(--line1); }
.key span { display: inline-block; margin-right: 1.2em; }
.key i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; border-radius: 2px; }
.key .line0 { background: var(--line0); } .key .line1 { background: var(--line1); }
table { border-collapse: collapse; }
th, td { text-align: right; padding: .2em .8em; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; }
.facts td { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
.facts td:first-child { white-space: nowrap; }
.kept td { font-weight: 600; }
.scroll { overflow-x: auto; }
.scroll svg { min-width: 44em; }
"""


def page(run: SavedRun, bundle: Bundle | None, evaluation: Evaluation | None, profile: Profile | None) -> str:
    """Return the page."""
    title = f"Run in {escape(run.path.name or str(run.path))}"
    body = [f"<h1>{title}</h1>", _of(run, bundle), _figures(run, evaluation)]
    for index, fit in enumerate(run.fits):
        body.append(_fit(fit, "" if len(run.fits) == 1 else f" of call {index + 1}"))
    if evaluation is not None:
        body.append(_evaluation(evaluation))
    if profile is not None:
        body.append(_profile(profile))
    body.append(_kept(run, bundle))
    head = (
        '<meta charset="utf-8"/><meta name="viewport" content="width=device-width"/>'
        f"<title>{title}</title><style>{_STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>{"".join(body)}</main></body></html>\n'


def _of(run: SavedRun, bundle: Bundle | None) -> str:
    of = "" if bundle is None else f"bundle {bundle.path}, "
    return f'<p class="of">{escape(of)}seed {run.seed}</p>'


def _figures(run: SavedRun, evaluation: Evaluation | None) -> str:
    last = run.fits[-1].report() if run.fits else None
    figures = {"steps": f"{run.steps:,}", "examples": f"{run.examples:,}"}
    if last is not None:
        figures["stopped by"] = last.stopped or "nothing yet"
        if last.best is not None:
            figures["epoch that was kept"] = str(last.best.epoch)
    if evaluation is not None:
        figures[f"loss on {evaluation.examples} examples"] = number(evaluation.loss)
        if evaluation.accuracy is not None:
            figures["accuracy"] = percent(evaluation.accuracy)
    tiles = "".join(f"<div><b>{escape(value)}</b>{escape(name)}</div>" for name, value in figures.items())
    return f'<div class="figures">{tiles}</div>'


def _fit(fit: FitState, of: str) -> str:
    """Return the curves and the table of one call of ``fit``."""
    report = fit.report()
    if not report.history:
        return f"<h2>Epochs{of}</h2><p>No epoch is complete.</p>"
    epochs, all_curves = [record.epoch for record in report.history], report.curves()
    losses = {name: values for name, values in all_curves.items() if "loss" in name}
    others = {name: values for name, values in all_curves.items() if "loss" not in name}
    parts = [f"<h2>Loss{of}</h2>", _key(losses), curves(epochs, losses, fit.best)]
    for name, values in others.items():
        label = str(fit.settings.get("metric") or name) if name == "held out metric" else name
        within = all(value is None or 0 <= value <= 1 for value in values)
        heading = escape(label[:1].upper() + label[1:])
        parts += [f"<h2>{heading}{of}</h2>", curves(epochs, {label: values}, fit.best, fractions=within)]
    return "".join((*parts, _epochs(report, all_curves, of), _settings(fit, of)))


def _epochs(report: FitReport, all_curves: Mapping[str, Sequence[float | None]], of: str) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("epoch", "step", *all_curves))
    lines = []
    for row, record in enumerate(report.history):
        cells = [str(record.epoch), str(record.step), *(number(values[row]) for values in all_curves.values())]
        kept = ' class="kept"' if record == report.best else ""
        lines.append(f"<tr{kept}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<h2>Epochs{of}</h2><div class="scroll" tabindex="0"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _settings(fit: FitState, of: str) -> str:
    hidden = {"training_data", "held_out_data"}
    facts = {name: value for name, value in fit.settings.items() if value is not None and name not in hidden}
    return f"<h2>Settings{of}</h2>{_facts(facts)}"


def _evaluation(evaluation: Evaluation) -> str:
    """Return the confusion matrix; darker cells have more of the examples of their true class."""
    parts = []
    for score in evaluation.metrics.values():
        if score.matrix is None:
            continue
        labels = list(map(escape, score.names))
        head = "".join(f"<th>{name}</th>" for name in ("true \\ predicted", *labels))
        rows = "".join(
            f"<tr><th>{name}</th>{''.join(_cell(count, max(sum(counts), 1)) for count in counts)}</tr>"
            for name, counts in zip(labels, score.matrix, strict=True)
        )
        parts.append(
            f'<h2>Confusion matrix</h2><div class="scroll" tabindex="0"><table><tr>{head}</tr>{rows}</table></div>'
        )
    return "".join(parts)


def _cell(count: int, total: int) -> str:
    return f'<td style="background: rgb(var(--cell) / {0.55 * count / total:.2f})">{count}</td>'


def _profile(profile: Profile) -> str:
    """Return the time of the slowest layers, and the memory of a step."""
    summary = profile.summary
    layers = summary.modules[:_LAYERS]
    text = {
        row.name: f"{milliseconds(row.seconds)}, {percent(row.seconds / max(summary.kernels, 1e-9))}" for row in layers
    }
    key = "".join(f'<span><i style="background:{color}"></i>{name}</span>' for name, color in _PASSES.items())
    memory = {name: size(count) for name, count in memory_rows(summary.memory)}
    return (
        f'<h2>Time by layer</h2><p class="of">{escape(measured(summary))}</p><p class="key">{key}</p>'
        f"{chart.bars(layers, _PASSES, text)}<h2>Memory of a step</h2>{_facts(memory)}"
    )


def _kept(run: SavedRun, bundle: Bundle | None) -> str:
    """Return what trained, what stays frozen, and which weights were not quantized."""
    shown = list(run.tensors.items())[:_TENSORS]
    tensors = ", ".join(f"{name} {list(shape)}" for name, shape in shown)
    more = len(run.tensors) - len(shown)
    facts: dict[str, object] = {f"trained ({len(run.tensors)})": tensors + (f" and {more} more" if more else "")}
    if bundle is not None:
        manifest = bundle.manifest
        facts |= manifest.facts()
        facts |= {name: value for name, value in manifest.provenance.items() if isinstance(value, str | int | float)}
        kept = manifest.provenance.get("kept", ())
        facts["not quantized"] = ", ".join(kept)
        dropped = manifest.provenance.get("prune")
        facts["pruned"] = "" if dropped is None else str(dropped)
    return f"<h2>What was kept</h2>{_facts(facts)}"


def _facts(facts: Mapping[str, object]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in facts.items() if value != ""
    )
    return f'<div class="scroll"><table class="facts">{rows}</table></div>'


def _key(lines: Mapping[str, object]) -> str:
    items = (f'<span><i class="line{index}"></i>{escape(name)}</span>' for index, name in enumerate(lines))
    return f'<p class="key">{"".join(items)}</p>'
