"""The gradient of a loop whose length only the run knows: the reverse loop (Griewank and Walther, 2008, section 3.2).

The forward loop returns the states before each iteration. The reverse loop reads them from the last to the first,
computes the iteration again, and carries the gradient of the states. The gradient of a tensor that all iterations read
is the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.autodiff.registry import ZERO, Flat, Gradients, Upstream, rule_of_outputs
from edgepeft_export.autodiff.walk import differentiate_from
from edgepeft_export.graph.custom_ops import DOMAIN, REPEAT
from edgepeft_export.graph.emit import Attribute, Emitter
from edgepeft_export.graph.match import operand
from edgepeft_export.graph.nested.bodies import isolate, rejoin
from edgepeft_export.graph.nested.inlining import Inserter
from edgepeft_export.graph.nested.iterations import Iterations, with_axis
from edgepeft_export.graph.shapes import dims_of, infer_shapes, is_float
from edgepeft_export.opset import IR_VERSION


@rule_of_outputs(REPEAT, domain=DOMAIN)
def repeated(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    """A ``Scan`` from the last iteration to the first."""
    reverse = _Reverse.of(node, upstream, emit.graph)
    iterations = reverse.iterations
    saved = [_saved(node, index) for index in reverse.recalled]
    states = [operand(node, index) for index in reverse.carried]
    shared = [operand(node, index) for index in reverse.summed]
    arriving = (upstream[index - iterations.counted] for index in reverse.carried)
    starts = [dy or emit.zeros(emit.shape_of(x), like=x) for dy, x in zip(arriving, states, strict=True)]
    starts += [emit.zeros(emit.shape_of(x), like=x) for x in shared]
    made = [value for index in reverse.made if (value := upstream[iterations.states + index]) is not None]
    if iterations.counted:
        results = _loop(emit, reverse.body, operand(node), starts, [*saved, *made])
    else:
        results = _scan(emit, reverse, starts, [*saved, *(operand(node, index) for index in reverse.sliced), *made])
    gradients: list[ir.Value | Flat] = [ZERO] * len(node.inputs)
    for index, gradient in zip((*reverse.carried, *reverse.summed, *reverse.found), results, strict=True):
        value = operand(node, index)
        gradient.shape, gradient.type = value.shape, value.type
        gradients[index] = gradient
    return gradients


def _scan(
    emit: Emitter, reverse: _Reverse, starts: Sequence[ir.Value], stacks: Sequence[ir.Value]
) -> Sequence[ir.Value]:
    iterations = reverse.iterations
    first = iterations.counted + iterations.states
    axes = dict(enumerate(iterations.axes, start=first))
    backwards = dict(enumerate(iterations.backwards, start=first))
    saved = len(reverse.recalled)
    found: dict[str, Attribute] = {}
    if reverse.found:
        found["scan_output_axes"] = [axes[index] for index in reverse.found]
        found["scan_output_directions"] = [1 - backwards[index] for index in reverse.found]
    return emit.ops(
        "Scan",
        *starts,
        *stacks,
        outputs=len(reverse.body.outputs),
        body=reverse.body,
        num_scan_inputs=len(stacks),
        scan_input_axes=[
            *[0] * saved,
            *(axes[index] for index in reverse.sliced),
            *(iterations.made_axes[index] for index in reverse.made),
        ],
        scan_input_directions=[
            *[1] * saved,
            *(1 - backwards[index] for index in reverse.sliced),
            *(1 - iterations.made_backwards[index] for index in reverse.made),
        ],
        domain="",
        **found,
    )


def _loop(
    emit: Emitter, body: ir.Graph, most: ir.Value, starts: Sequence[ir.Value], stacks: Sequence[ir.Value]
) -> Sequence[ir.Value]:
    """A ``Loop``, because onnxruntime refuses a ``Scan`` of no iterations. It reads the slices itself.

    It ends after as many iterations as the forward one, and has the constant limit of that one.
    """
    count = emit.op("Squeeze", emit.dim(stacks[0], 0), emit.ints(0))
    last = emit.op("Sub", count, emit.index(1))
    at = ir.Value(name="iteration", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64))
    goes_on = ir.Value(name="goes_on", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    slices = list(body.inputs[len(starts) :])
    body.inputs[:] = [at, goes_on, *body.inputs[: len(starts)]]
    write = Inserter(body[0])
    index = write.op("Sub", last, at)
    for inner, stack in zip(slices, stacks, strict=True):
        part = write.op("Gather", stack, index, axis=0)
        part.shape = inner.shape
        inner.replace_all_uses_with(part)
    more = write.op("Less", at, last)
    more.type = goes_on.type
    body.outputs[:0] = [more]
    begins = emit.op("Greater", count, emit.index(0))
    return emit.ops("Loop", most, begins, *starts, outputs=len(starts), body=body)


@dataclass(frozen=True)
class _Reverse:
    """The body of a reverse loop. Indices of inputs are those of the node and of its body, which are the same.

    Attributes:
        iterations: the parts of the loop.
        body: (gradients of states, sums so far, recalled inputs, slices, gradients of what is made) to (gradients of
            states, sums, gradients of slices). It reads shared tensors from the graph around it.
        carried: the states of which it has a gradient.
        summed: the shared inputs with a gradient.
        recalled: the inputs of an iteration that have to be saved.
        sliced: the slices that it reads.
        found: those of them with a gradient.
        made: which of the stacked outputs have a gradient, counted from the first of them.
    """

    iterations: Iterations
    body: ir.Graph
    carried: Sequence[int]
    summed: Sequence[int]
    recalled: Sequence[int]
    sliced: Sequence[int]
    found: Sequence[int]
    made: Sequence[int]

    @classmethod
    def of(cls, node: ir.Node, upstream: Upstream, graph: ir.Graph) -> _Reverse:
        iterations = Iterations.of(node)
        forward: ir.Graph = node.attributes["body"].as_graph()
        body = forward.clone(allow_outer_scope_values=True)
        given, twins = list(body.inputs), isolate(body)
        start, first_slice = iterations.counted, iterations.counted + iterations.states
        shared = iterations.shared_from
        outputs = body.outputs[1 if start else 0 :]
        if start:  # while a body runs, the condition is true
            given[1].replace_all_uses_with(Emitter(body).constant(np.asarray(True)))
        carried = [index for index in range(start, first_slice) if is_float(given[index])]
        made = [index for index, dy in enumerate(upstream[iterations.states :]) if dy is not None]
        ends = [outputs[index - start] for index in carried] + [outputs[iterations.states + index] for index in made]
        arriving = [ir.Value(name=f"gradient.{at}", shape=y.shape, type=y.type) for at, y in enumerate(ends)]
        wanted = [index for index in range(start, len(given)) if is_float(given[index])]
        body.inputs.extend(arriving)  # so that gradients can read their shapes
        found = differentiate_from(body, dict(zip(ends, arriving, strict=True)), [given[index] for index in wanted])
        summed = [index for index in wanted if index >= shared and given[index] in found]
        of_slices = [index for index in wanted if first_slice <= index < shared and given[index] in found]
        emit = Emitter(body, scope="iteration")
        sums = [ir.Value(name=f"sum.{index}", shape=given[index].shape, type=given[index].type) for index in summed]
        earlier = [found.get(given[index]) or _zeros(given[index], emit) for index in carried]
        totals = [emit.add([total, found[given[index]]]) for total, index in zip(sums, summed, strict=True)]
        results = [*earlier, *totals, *(found[given[index]] for index in of_slices)]
        body.outputs[:] = [emit.op("Identity", value) for value in results]
        model = ir.Model(body, ir_version=IR_VERSION)
        _remove_unused(body)
        common.NameFixPass()(model)
        infer_shapes(model)
        recalled = [index for index in range(first_slice) if given[index].uses()]
        sliced = [index for index in range(first_slice, shared) if given[index].uses() or index in of_slices]
        if start and not (recalled or made):
            recalled = [0]  # the number of iterations
        if not start and not (recalled or sliced or made):
            sliced = [first_slice]
        for inner, outer in zip(given[shared:], node.inputs[shared:], strict=True):
            assert outer is not None
            twins[outer] = inner
        rejoin(body, twins, graph)
        body.inputs[:] = [
            *arriving[: len(carried)],
            *sums,
            *(given[index] for index in recalled),
            *(given[index] for index in sliced),
            *arriving[len(carried) :],
        ]
        return cls(iterations, body, carried, summed, recalled, sliced, of_slices, made)


def _zeros(value: ir.Value, emit: Emitter) -> ir.Value:
    return emit.zeros(emit.shape_of(value), like=value)


def _remove_unused(body: ir.Graph) -> None:
    for node in reversed(list(body)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            body.remove(node, safe=True)


def _saved(node: ir.Node, index: int) -> ir.Value:
    """An input of the body at all iterations, in their order. The node gets it as a further output."""
    iterations, body = Iterations.of(node), node.attributes["body"].as_graph()
    inner = body.inputs[index]
    kept = Emitter(body, scope=str(node.name)).op("Identity", inner)
    kept.shape, kept.type = inner.shape, inner.type
    body.outputs.append(kept)
    node.resize_outputs(len(node.outputs) + 1)
    saved = node.outputs[-1]
    saved.name, saved.type = f"{node.name or node.op_type}.before.{index}", inner.type
    saved.shape = with_axis(dims_of(inner), 0, None)
    axes, backwards = (*iterations.made_axes, 0), (*iterations.made_backwards, 0)
    replace(iterations, made_axes=axes, made_backwards=backwards).write(node)
    return saved
