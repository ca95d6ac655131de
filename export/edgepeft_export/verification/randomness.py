"""Finds what draws random numbers: such a graph gives other results at every run, and no gradient can be checked."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.errors import RandomForward, VerificationError

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


def refuse_random(model: ir.Model) -> None:
    """Raise :class:`VerificationError` where a node of the graph, or of a graph within it, draws random numbers."""
    found = [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if _draws(node)]
    if found:
        raise draws_random([f"op {node.op_type} (node {node.name or '?'})" for node in found])


def draws_random(where: list[str]) -> VerificationError:
    """The error for a source that gives two results for one input."""
    return RandomForward(
        "The model draws random numbers when it is run: two runs on the same inputs give different outputs.",
        context="\n".join(where[:5]) + ("\n…" if len(where) > 5 else ""),
        hint="draw only while self.training, or pass the random numbers in as an input.",
    )


def _draws(node: ir.Node) -> bool:
    return not node.domain and (node.op_type in _RANDOM or (node.op_type == "Dropout" and _trains(node)))


def _trains(dropout: ir.Node) -> bool:
    """Whether a Dropout drops something: its third input is true, or only known when it runs."""
    mode = dropout.inputs[2] if len(dropout.inputs) > 2 else None
    if mode is None:
        return False
    constant = ir.convenience.get_const_tensor(mode)
    return constant is None or bool(constant.numpy().any())
