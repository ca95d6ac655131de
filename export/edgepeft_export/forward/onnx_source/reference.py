"""Compares a forward graph with the ``.onnx`` file it was made from, at two sizes, and names what differs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgepeft_export.errors import ExportDiffers, VerificationError
from edgepeft_export.forward.graph import Forward
from edgepeft_export.verification import (
    FLOAT32,
    HALF,
    QUANTIZED,
    Example,
    GraphRun,
    Verified,
    difference,
    refuse_random,
)
from edgepeft_export.verification.compare import Array, Arrays
from edgepeft_export.verification.graph import inner_values
from edgepeft_export.verification.invent import Runs

_ROUNDED = frozenset(
    {
        "QuantizeLinear",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "MatMulNBits",
        "GatherBlockQuantized",
    }
)
"""Operators of quantized files."""


@dataclass(frozen=True)
class FileReference:
    """A file as read, and its runs.

    Attributes:
        model: as read, unchanged.
        runs: its inputs and outputs.
        half: whether it computes in half precision anywhere.
        notes: facts about the file for the user.
    """

    model: ir.Model
    runs: Runs
    half: bool = False
    notes: tuple[str, ...] = ()

    @property
    def tolerance(self) -> float:
        """The largest relative difference between the file and a graph made from it."""
        nodes = list(self.model.graph)
        if any(node.op_type in _ROUNDED for node in nodes):
            return QUANTIZED
        return HALF if self.half else FLOAT32


def verified(forward: Forward, reference: FileReference) -> Forward:
    """The same graph, with the examples on which it was compared.

    Raises:
        VerificationError: the graph's outputs differ from the file's, or it draws random numbers.
    """
    refuse_random(forward.model)
    if not reference.runs.pairs:
        note = f"{_UNTRIED} ({reference.runs.failure})" if reference.runs.failure is not None else _UNTRIED
        return replace(forward, verified=Verified((), reference.tolerance, (note, *reference.notes)))
    graph = GraphRun(forward.model)
    examples = []
    for given, expected in reference.runs.pairs:
        feeds = _in_own_types(forward, given)
        got = graph({**feeds, **forward.fixed(forward.parameters)})
        outputs = {name: _with_axes_of(array, got[name]) for name, array in expected.items()}
        for name, array in outputs.items():
            off = difference(got[name], array)
            if off > reference.tolerance:
                raise _differs(forward, reference, given, name, off)
        examples.append(Example(feeds, outputs))
    return replace(forward, verified=Verified(tuple(examples), reference.tolerance, reference.notes))


def _with_axes_of(array: Array, ours: Array) -> Array:
    """An output with the axes of size 1 that ours has.

    A ``Squeeze`` without axes drops that of a batch of one. In a graph it drops the same axes for every batch.
    """
    same = [size for size in array.shape if size != 1] == [size for size in ours.shape if size != 1]
    return array.reshape(ours.shape) if same and array.ndim < ours.ndim else array


def _in_own_types(forward: Forward, feeds: Arrays) -> dict[str, Array]:
    return in_types_of(forward.input_values(), feeds)


def in_types_of(inputs: Iterable[ir.Value], feeds: Arrays) -> dict[str, Array]:
    """Inputs of a file in the types of a graph's inputs: in float32 where the file computes in half precision."""
    dtypes = {str(value.name): value.dtype for value in inputs}
    return {
        name: array if (dtype := dtypes.get(name)) is None else array.astype(dtype.numpy())
        for name, array in feeds.items()
    }


_UNTRIED = (
    "the file runs on none of the inputs that were tried, so the graph could not be compared with it: give "
    "example_inputs, arrays by name"
)


def _differs(forward: Forward, reference: FileReference, feeds: Arrays, name: str, off: float) -> VerificationError:
    far = f"they differ by {off:.2g} of the largest value" if np.isfinite(off) else "it has another shape"
    return ExportDiffers(
        f"The graph made from the file computes another {name!r}: {far} (allowed: {reference.tolerance:g}).",
        context=_first(forward, reference, feeds),
        hint="export the model again with opset 20; if that does not help, please report the operator.",
    )


def _first(forward: Forward, reference: FileReference, feeds: Arrays) -> str:
    """The first tensor, in the graph's order, that the file has too and that differs."""
    theirs = {str(value.name) for node in reference.model.graph for value in node.outputs if value.name}
    shared = [str(value.name) for node in forward.model.graph for value in node.outputs if value.name in theirs]
    fed = {**_in_own_types(forward, feeds), **forward.fixed(forward.parameters)}
    pairs = zip(inner_values(forward.model, fed, shared), inner_values(reference.model, feeds, shared), strict=True)
    for (name, ours), (_, array) in pairs:
        if difference(ours, array) > reference.tolerance:
            return f"The first tensor that differs is {name!r}, of {_made_by(reference.model, name)}."
    return "No tensor but the output differs."


def _made_by(model: ir.Model, name: str) -> str:
    node = next(node for node in model.graph if any(value.name == name for value in node.outputs))
    return f"op {node.op_type} (node {node.name or '?'})"
