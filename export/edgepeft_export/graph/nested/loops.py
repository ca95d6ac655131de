"""Loops over slices of tensors, as ``Scan`` nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter

Step = Callable[[Emitter, Sequence[ir.Value], Sequence[ir.Value]], tuple[Sequence[ir.Value], Sequence[ir.Value]]]
"""The body of a loop: states before a step and the step's slices, to states after it and outputs of the step."""


def loop(
    emit: Emitter, states: Sequence[ir.Value], steps: Sequence[ir.Value], body: Step, *, backwards: bool
) -> Sequence[ir.Value]:
    """Append a Scan over axis 0 of ``steps``. Returns the states after the last step, then the stacked step outputs.

    The body may read values of the graph around it.
    """
    graph = ir.Graph([], [], nodes=[], name="step", opset_imports=emit.graph.opset_imports)
    inside = Emitter(graph, emit.scope)
    inner = [ir.Value(name=f"in.{index}", type=value.type) for index, value in enumerate((*states, *steps))]
    graph.inputs.extend(inner)
    after, made = body(inside, inner[: len(states)], inner[len(states) :])
    for value in (*after, *made):
        own = value.producer() is not None and not value.is_graph_output()
        graph.outputs.append(value if own else inside.op("Identity", value))
    return emit.ops(
        "Scan",
        *states,
        *steps,
        outputs=len(after) + len(made),
        body=graph,
        num_scan_inputs=len(steps),
        scan_input_directions=[int(backwards)] * len(steps),
        scan_output_directions=[int(backwards)] * len(made),
    )
