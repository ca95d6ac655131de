"""Einsum: the gradient for one operand is an Einsum of the output's gradient with the other operands."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from string import ascii_letters

import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, NoGradientForCase, rule
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.nested.inlining import Inserter
from edgepeft_export.graph.shapes import Dim, broadcast_dim, dims_of, rank


@rule("Einsum")
def einsum(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    operands = [value for value in node.inputs if value is not None]
    terms, output = _letters(node, operands)
    if any(len(set(term)) < len(term) for term in terms):
        raise NoGradientForCase(
            node,
            f"{node.attributes['equation'].as_string()!r} repeats an index within one operand",
            "take the diagonal by other operators",
        )
    sizes = _sizes(terms, operands)
    if not output:
        # ONNX Runtime has no scalar operands, so one element gets an index of its own.
        output = next(letter for letter in ascii_letters if letter not in sizes)
        dy = emit.op("Reshape", dy, emit.ints(1))
    return [_gradient(node, at, dy, output, terms, operands, sizes, emit) for at in range(len(operands))]


def _gradient(
    node: ir.Node,
    at: int,
    dy: ir.Value,
    output: str,
    terms: Sequence[str],
    operands: Sequence[ir.Value],
    sizes: dict[str, Dim],
    emit: Emitter,
) -> ir.Value:
    others = [term for index, term in enumerate(terms) if index != at]
    kept = [letter for letter in terms[at] if any(letter in term for term in (output, *others))]
    equation = f"{','.join((output, *others))}->{''.join(kept)}"
    inputs = [value for index, value in enumerate(operands) if index != at]
    _refuse_broadcast(node, others, inputs, set(kept) - set(output))
    gradient = dy if equation == f"{output}->{output}" else emit.op("Einsum", dy, *inputs, equation=equation)
    alone = [axis for axis, letter in enumerate(terms[at]) if letter not in kept]
    if alone:
        gradient = emit.op("Unsqueeze", gradient, emit.ints(*alone))
    if alone or _summed_broadcast(at, output, terms, operands):
        # Summed in this operand only, or with others of size 1: each of its elements has the same gradient.
        gradient = emit.op("Expand", gradient, emit.shape_of(operands[at]))
    own = dims_of(operands[at])
    have = [own[axis] if axis in alone else sizes[letter] for axis, letter in enumerate(terms[at])]
    return emit.sum_to(gradient, have, operands[at])


def _refuse_broadcast(
    node: ir.Node, terms: Sequence[str], operands: Sequence[ir.Value], indices: Collection[str]
) -> None:
    """Refuse an index that the gradient keeps and its operands broadcast from 1: ONNX Runtime would infer 1."""
    for letter in indices:
        sizes = [
            dims_of(value)[term.index(letter)] for term, value in zip(terms, operands, strict=True) if letter in term
        ]
        uncertain = sizes[0] == 1 or not isinstance(sizes[0], int)
        if uncertain and any(size != sizes[0] for size in sizes):
            raise NoGradientForCase(
                node, f"its index {letter!r} is summed and broadcast from size 1", "expand the operand before it"
            )


def _summed_broadcast(at: int, output: str, terms: Sequence[str], operands: Sequence[ir.Value]) -> bool:
    """Whether another operand may have size 1 in an index of this one that the output does not have."""
    own = dict(zip(terms[at], dims_of(operands[at]), strict=True))
    pairs = (
        pair for term, value in zip(terms, operands, strict=True) for pair in zip(term, dims_of(value), strict=True)
    )
    return any(letter in own and letter not in output and size != own[letter] for letter, size in pairs)


def _letters(node: ir.Node, operands: Sequence[ir.Value]) -> tuple[list[str], str]:
    """The terms of the equation and its output, every ellipsis spelled out in letters."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    left, arrow, output = equation.partition("->")
    terms = left.split(",")
    free = [letter for letter in ascii_letters if letter not in equation]
    hidden = [rank(value) - len(term) + 3 if "..." in term else 0 for term, value in zip(terms, operands, strict=True)]
    ellipsis = "".join(free[: max(hidden)])
    if not arrow:
        output = "..." * ("..." in left) + "".join(sorted(c for c in set(left) - set(",.") if left.count(c) == 1))
    terms = [term.replace("...", ellipsis[len(ellipsis) - count :]) for term, count in zip(terms, hidden, strict=True)]
    return terms, output.replace("...", ellipsis)


def is_misjudged(node: ir.Node) -> bool:
    """Whether an index of the output may be broadcast to another size than shape inference says.

    ONNX's inference uses the size of the first operand that has the index. ONNX Runtime and torch broadcast.
    """
    operands = [value for value in node.inputs if value is not None]
    if any(value.shape is None for value in (*operands, node.outputs[0])):
        return False
    terms, output = _letters(node, operands)
    equation = node.attributes["equation"].as_string()
    for letter, recorded, sizes in _output_sizes(node, terms, output, operands):
        judged = sizes[0] if letter in equation else recorded  # an ellipsis is broadcast where its sizes are known
        if any(size not in (judged, 1) for size in sizes) and not isinstance(judged, int):
            return True
        if judged == 1 and any(size != 1 for size in sizes):
            return True
    return False


def expand_operands(node: ir.Node) -> bool:
    """Expand each operand whose index of size 1 is broadcast, in front of a node. Returns whether there is one.

    ONNX Runtime relies on the same inference where it plans memory, and the gradient would be summed to size 1.
    """
    operands = [value for value in node.inputs if value is not None]
    if any(value.shape is None for value in operands):
        return False
    terms, _ = _letters(node, operands)
    before, found = Inserter(node), False
    for at, (term, value) in enumerate(zip(terms, operands, strict=True)):
        wider = [_wider(letter, size, terms, operands) for letter, size in zip(term, dims_of(value), strict=True)]
        if any(source is not None for source in wider):
            read = [source or (value, axis) for axis, source in enumerate(wider)]
            sizes = [before.op("Shape", operand, start=axis, end=axis + 1) for operand, axis in read]
            for size in sizes:
                size.type = ir.TensorType(ir.DataType.INT64)
            shape = before.op("Concat", *sizes, axis=0)
            expanded = before.op("Expand", value, shape)
            expanded.shape = ir.Shape([dims_of(operand)[axis] for operand, axis in read])
            node.replace_input_with(at, expanded)
            found = True
    return found


def _wider(letter: str, size: Dim, terms: Sequence[str], operands: Sequence[ir.Value]) -> tuple[ir.Value, int] | None:
    """The operand, and its axis, to whose size an index of size 1 is broadcast; ``None`` where it is not."""
    if size != 1:
        return None
    others = ((value, term.index(letter)) for term, value in zip(terms, operands, strict=True) if letter in term)
    return next(((value, axis) for value, axis in others if dims_of(value)[axis] != 1), None)


def _output_sizes(
    node: ir.Node, terms: Sequence[str], output: str, operands: Sequence[ir.Value]
) -> Iterator[tuple[str, Dim, list[Dim]]]:
    """Each index of the output, with the size that the output has there, and those of the operands in their order."""
    sizes: dict[str, list[Dim]] = {}
    for term, value in zip(terms, operands, strict=True):
        for letter, size in zip(term, dims_of(value), strict=True):
            sizes.setdefault(letter, []).append(size)
    for letter, recorded in zip(output, dims_of(node.outputs[0]), strict=True):
        yield letter, recorded, sizes[letter]


def _sizes(terms: Sequence[str], operands: Sequence[ir.Value]) -> dict[str, Dim]:
    """The size each letter stands for."""
    sizes: dict[str, Dim] = {}
    for term, value in zip(terms, operands, strict=True):
        for letter, size in zip(term, dims_of(value), strict=True):
            sizes[letter] = broadcast_dim(sizes.get(letter, size), size)
    return sizes
