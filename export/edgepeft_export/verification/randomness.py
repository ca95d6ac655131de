"""Refuses graphs that draw random numbers, because their results differ between runs and cannot be verified."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.errors import RandomForward, VerificationError

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


def refuse_random(model: ir.Model) -> None:
    """Raise ``VerificationError`` where a node of the graph, or of a graph within it, draws random numbers."""
    drawing = [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if _draws(node)]
    if drawing:
        raise draws_random([f"op {node.op_type} (node {node.name or '?'})" for node in drawing])


def draws_random(where: list[str]) -> VerificationError:
    """The error for a source with two results for one input."""
    return RandomForward(
        "The model draws random numbers when it is run: two runs on the same inputs give different outputs.",
        context="\n".join(where[:5]) + ("\n…" if len(where) > 5 else ""),
        hint="draw only while self.training, or pass the random numbers in as an input.",
    )


def _draws(node: ir.Node) -> bool:
    return not node.domain and (node.op_type in _RANDOM or (node.op_type == "Dropout" and _trains(node)))


def _trains(dropout: ir.Node) -> bool:
    """Whether a Dropout drops elements: its third input is true, or computed at run time."""
    mode = dropout.inputs[2] if len(dropout.inputs) > 2 else None
    if mode is None:
        return False
    constant = ir.convenience.get_const_tensor(mode)
    return constant is None or bool(constant.numpy().any())
