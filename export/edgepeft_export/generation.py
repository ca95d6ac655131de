"""The program ``generate``: the model as a step of generation, on the parameters and frozen bytes of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from edgepeft_export.compile import Compiled
from edgepeft_export.finish import finish
from edgepeft_export.forward.decoding import Decoding
from edgepeft_export.graph.edit import bind_inputs
from edgepeft_export.quantize import Quantization, QuantizationReport, quantize
from edgepeft_export.quantize.weights import weights_of
from edgepeft_runtime.bundle.programs import Call
from edgepeft_runtime.notices import notice


def with_generation(
    compiled: Compiled, decoding: Decoding, quantization: Quantization, report: QuantizationReport
) -> Compiled:
    """The graphs of a bundle with ``generate`` among them.

    Args:
        compiled: of the same model. Its parameters are the inputs here.
        decoding: of the model, fp32.
        quantization: that of the other graphs.
        report: of the other graphs. Weights that stay fp32 there stay fp32 here.
    """
    there = {weight.name for weight in weights_of(decoding.forward.model.graph, quantization.smallest)}
    kept = tuple(name for name in report.kept if name in there)
    again = quantization if quantization.compute == "fp32" else replace(quantization, keep=kept)
    forward, own = quantize(decoding.forward, again, decided=report)
    only_here = {name: reason for name, reason in own.kept.items() if name not in report.kept}
    for line in QuantizationReport(kept=only_here).lines():
        notice(f"In the graph that generates, {line}")
    model = forward.model.clone()
    bind_inputs(model.graph, forward.fixed([name for name in forward.parameters if name not in compiled.parameters]))
    if compiled.segments is not None:
        calls = compiled.segments.forward(model, "head.generate")
        return _with_program(compiled, compiled.segments.library.graphs, calls)
    finish(model, set(model.graph.initializers))
    _in_order(model.graph, [*forward.inputs, *compiled.adapter])
    return _with_program(compiled, {"generate": model}, (Call("generate.onnx"),))


def _with_program(compiled: Compiled, graphs: Mapping[str, ir.Model], calls: tuple[Call, ...]) -> Compiled:
    programs = {**compiled.programs, "generate": calls}
    return replace(compiled, graphs={**compiled.graphs, **graphs}, programs=programs)


def _in_order(graph: ir.Graph, names: Sequence[str]) -> None:
    """Graph inputs in the order of the other graphs."""
    values = {str(value.name): value for value in graph.inputs}
    graph.inputs[:] = [values[name] for name in names if name in values]
