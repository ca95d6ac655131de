"""``generate.onnx``: the model as a step of generation, on the same parameters and frozen bytes as the other graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from edgepeft_export.compile import Compiled, sweep
from edgepeft_export.forward.decoding import Decoding
from edgepeft_export.graph.custom_ops import lower
from edgepeft_export.graph.edit import bind_inputs
from edgepeft_export.opset import assert_runs_on_devices
from edgepeft_export.quantize import Quantization, QuantizationReport, quantize
from edgepeft_export.quantize.weights import weights_of
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
    forward, own = quantize(decoding.forward, again)
    only_here = {name: reason for name, reason in own.kept.items() if name not in report.kept}
    for line in QuantizationReport(kept=only_here).lines():
        notice(f"In the graph that generates, {line}")
    model = forward.model.clone()
    lower(model)
    bind_inputs(model.graph, forward.fixed([name for name in forward.parameters if name not in compiled.parameters]))
    sweep(model)
    _in_order(model.graph, [*forward.inputs, *compiled.adapter])
    assert_runs_on_devices(model)
    return replace(compiled, graphs={**compiled.graphs, "generate": model})


def _in_order(graph: ir.Graph, names: Sequence[str]) -> None:
    """Graph inputs in the order of the other graphs."""
    values = {str(value.name): value for value in graph.inputs}
    graph.inputs[:] = [values[name] for name in names if name in values]
