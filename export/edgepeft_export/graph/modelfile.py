"""Read untrusted ``.onnx`` files, with the files of their tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from edgepeft_export.errors import NotAModel
from edgepeft_runtime.files.regular import open_regular


def load_model(path: str | Path) -> ir.Model:
    """Load a model and open the files of its tensors, so that a missing one is an error now and not later.

    Raises:
        NotAModel: it cannot be read, or a file is not a regular one.
    """
    try:
        _check_regular(path)
        model = ir.load(path)
        for _, tensor in stored_tensors(model):
            if isinstance(tensor, ir.ExternalTensor):
                _check_regular(tensor.path)
                tensor.numpy()
    except Exception as error:  # protobuf, onnx and the file system each raise their own
        raise NotAModel(
            f"{path} cannot be read as an ONNX model.",
            context=f"{type(error).__name__}: {error}",
            hint="give the path of an .onnx file; files with its tensors must be next to it.",
        ) from error
    return model


def _check_regular(path: str | Path) -> None:
    os.close(open_regular(path, follow=True))  # nobody may ever write to a pipe


def stored_tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Yield initializers by name, and tensors of attributes by their node's first output; functions are included."""
    owners: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    graphs = {id(graph): graph for owner in owners for graph in owner.subgraphs()} | {id(model.graph): model.graph}
    for value in (value for graph in graphs.values() for value in graph.initializers.values()):
        if value.const_value is not None:
            yield str(value.name), value.const_value
    for node in (node for owner in owners for node in owner.all_nodes()):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                yield str(node.outputs[0].name), attribute.as_tensor()
