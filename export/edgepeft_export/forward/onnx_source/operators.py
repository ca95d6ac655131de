"""Refuses files whose operators nobody defines, and those in which nothing can train."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from edgepeft_export.errors import NoWeights, UnknownOperator, WrongInputType
from edgepeft_export.graph.definitions import DEFINITIONS
from edgepeft_export.graph.nested.bodies import graphs_of
from edgepeft_export.opset import MIN_ONNXRUNTIME, has_kernel
from edgepeft_export.opset.domains import CONTRIB, ML

_INSTEAD = {
    "Erfc": "Erfc(x) is 1 - Erf(x)",
    "com.microsoft.nchwc": "ONNX Runtime writes it for the processor: save the model at the extended level instead",
    "com.ms.internal.nhwc": "ONNX Runtime writes it for the processor: save the model at the extended level instead",
}
"""What an operator means, or where all those of a domain are from, which some converter writes."""

_WITHOUT_WEIGHTS = {
    f"{ML}.TreeEnsemble": "a forest of decision trees, whose outputs change in jumps",
    f"{ML}.TreeEnsembleClassifier": "a forest of decision trees, whose outputs change in jumps",
    f"{ML}.TreeEnsembleRegressor": "a forest of decision trees, whose outputs change in jumps",
    f"{ML}.SVMClassifier": "a support vector machine, whose vectors are rows of its data",
    f"{ML}.SVMRegressor": "a support vector machine, whose vectors are rows of its data",
}


def unknown_operators(model: ir.Model, nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Those nodes whose operator neither ONNX nor ONNX Runtime nor a function of the file defines.

    ONNX Runtime's own operators are checked later, since some are replaced.
    """
    for node in nodes:
        name = _full_name(node)
        known = onnx.defs.has(node.op_type, node.domain) or node.op_identifier() in model.functions
        if not known and node.domain != CONTRIB and name not in DEFINITIONS and not has_kernel(name):
            yield node


def refuse_unknown(model: ir.Model, path: Path) -> None:
    """Raise ``UnknownOperator`` for the first such node of a model as read, its functions included."""
    owners: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    node = next(unknown_operators(model, (node for owner in owners for node in owner.all_nodes())), None)
    if node is None:
        return
    domain = f" of the domain {node.domain!r}" if node.domain else ""
    instead = _INSTEAD.get(node.domain) or _INSTEAD.get(node.op_type)
    meaning = "" if instead is None else f"{instead}; or "
    raise UnknownOperator(
        f"{path} has an operator {node.op_type}{domain} (node {node.name or '?'}), which neither ONNX nor the CPU "
        f"build of onnxruntime {MIN_ONNXRUNTIME} has.",
        context=f"It computes {', '.join(str(value.name) for value in node.outputs)}.",
        hint=f"{meaning}write it by operators of ONNX, add a function of its name to the file, or name a tensor before "
        "it as output (outputs=, --outputs).",
    )


def refuse_texts(graph: ir.Graph, path: Path) -> None:
    """Raise ``WrongInputType`` for the first input that is no tensor of numbers."""
    for value in graph.inputs:
        is_text = value.dtype == ir.DataType.STRING
        if not value.uses() or not (is_text or isinstance(value.type, (ir.SequenceType, ir.OptionalType))):
            continue
        readers = ", ".join(sorted({use.node.op_type for use in value.uses()}))
        raise WrongInputType(
            f"The input {value.name!r} of {path} is {'text' if is_text else 'a sequence of tensors'}, and devices "
            "give a model tensors of numbers.",
            context=f"it is read by {readers}",
            hint="cut the file after these (onnx.utils.extract_model), and compute their numbers before.",
        )


def refuse_without_weights(model: ir.Model, path: Path) -> None:
    """Raise ``NoWeights`` where a model has no tensor of numbers, with the operator that is the reason."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    graphs = [model.graph, *(graph for node in nodes for graph in graphs_of(node))]
    tensors = [value.const_value for graph in graphs for value in graph.initializers.values()]
    found = next((node for node in nodes if _full_name(node) in _WITHOUT_WEIGHTS), None)
    axes = 2 if found is not None else 0  # a scaler before trees has vectors
    if any(True for tensor in tensors if tensor is not None and _is_weight(tensor) and len(tensor.shape) >= axes):
        return
    hint = "fit such a model again where its data is; networks and linear models can be prepared"
    if found is not None:
        reason = f"op {found.op_type} (node {found.name or '?'}) is {_WITHOUT_WEIGHTS[_full_name(found)]}"
    elif any(tensor is not None and tensor.dtype == ir.DataType.DOUBLE for tensor in tensors):
        reason, hint = "its numbers are float64, and devices train float32", "export the model in float32"
    else:
        reason = "it has no tensor of floating numbers or of 8 or 4 bits"
    raise NoWeights(f"Nothing in the file can train: {reason}.", context=str(path), hint=f"{hint}.")


def _is_weight(tensor: ir.TensorProtocol) -> bool:
    floats = tensor.dtype.is_floating_point() and tensor.dtype != ir.DataType.DOUBLE
    return floats or tensor.dtype.bitwidth <= 8


def _full_name(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type
