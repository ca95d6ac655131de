"""The outputs of a graph that is made from a file: those that are named, and the file's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from edgepeft_export.errors import UnknownOutput
from edgepeft_export.forward.onnx_source.operators import unknown_operators
from edgepeft_export.graph.match import operand
from edgepeft_export.graph.modelfile import DICTIONARIES
from edgepeft_export.graph.nested.bodies import reads
from edgepeft_export.graph.shapes import is_float


def keep_tensors(model: ir.Model) -> tuple[str, ...]:
    """Leave out the outputs of a model as read that are no tensors of numbers, in place. Returns notes about them."""
    notes = [
        f"the file's output {node.outputs[0].name!r} has dictionaries: {operand(node).name!r} has their numbers"
        for node in model.graph
        if node.op_type == DICTIONARIES
    ]
    kept = []
    for value in model.graph.outputs:
        if value.dtype == ir.DataType.STRING or isinstance(value.type, (ir.SequenceType, ir.OptionalType)):
            kind = "texts" if value.dtype == ir.DataType.STRING else "a sequence of tensors"
            notes.append(f"the file's output {value.name!r} has {kind}, which devices do not return: it is left out")
        else:
            kept.append(value)
    if notes and not kept:
        raise _unknown(model.graph, "The file has no output that is a tensor of numbers.")
    model.graph.outputs[:] = kept
    return tuple(notes)


def floats_first(graph: ir.Graph) -> str:
    """Make the first output of floats the first, because no loss can be of whole numbers; return a note where it moved.

    Classifiers of scikit-learn have the label before the probabilities.

    Raises:
        UnknownOutput: all outputs have whole numbers.
    """
    first = graph.outputs[0]
    floats = [value for value in graph.outputs if value.dtype is None or is_float(value)]
    if not floats:
        raise _unknown(graph, f"The file's output {first.name!r} has whole numbers, and no loss can be of them.")
    if floats[0] is first or first.dtype is None:
        return ""
    graph.outputs[:] = [floats[0], *(value for value in graph.outputs if value is not floats[0])]
    reads = f"the loss reads {floats[0].name!r}; name the outputs to choose others"
    return f"the file's output {first.name!r} has whole numbers: {reads}"


def choose_outputs(model: ir.Model, outputs: Sequence[str]) -> tuple[str, ...]:
    """Make these tensors the first outputs of a model as read, in place, before the file's own. Returns notes.

    An output of the file that devices cannot compute is left out.

    Raises:
        ForwardError: there is no tensor of a name.
    """
    graph = model.graph
    made = {str(value.name): value for node in graph for value in node.outputs if value.name}
    missing = [name for name in outputs if name not in made]
    if missing or not outputs:
        raise _unknown(
            graph, "The file has no tensor named " + (", ".join(map(repr, missing)) or "by an empty list") + "."
        )
    chosen, notes = [made[name] for name in dict.fromkeys(outputs)], []
    for value in graph.outputs:
        unknown = sorted({node.op_type for node in unknown_operators(model, _before(graph, value))})
        if value in chosen:
            continue
        if unknown:
            notes.append(f"devices cannot compute the file's output {value.name!r} ({', '.join(unknown)})")
        else:
            chosen.append(value)
    graph.outputs[:] = chosen
    return tuple(notes)


def _before(graph: ir.Graph, value: ir.Value) -> Iterable[ir.Node]:
    """The nodes that an output is computed by, the last first."""
    needed, nodes = {value}, []
    for node in reversed(list(graph)):
        if not needed.isdisjoint(node.outputs):
            needed.update(reads(node))
            nodes.append(node)
    return nodes


def _unknown(graph: ir.Graph, message: str) -> UnknownOutput:
    made = [value for node in graph for value in node.outputs if value.name and value not in graph.outputs]
    inner = [str(value.name) for value in made[::-1]]
    return UnknownOutput(
        message,
        context=f"its outputs: {', '.join(str(value.name) for value in graph.outputs)}\n"
        f"tensors inside, the last first: {', '.join(inner[:20])}{' …' if len(inner) > 20 else ''}",
        hint="choose among these (outputs=, --outputs).",
    )
