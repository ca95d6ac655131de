"""Reads ``.onnx`` files that somebody else wrote, with the files their tensors lie in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from edgepeft_runtime.files.regular import open_regular


def load_model(path: str | Path) -> ir.Model:
    """Load a model and open the files that hold its tensors: a missing one is an error now, not of a later step.

    Raises:
        Exception: protobuf, onnx and the file system each raise their own; also where a file is not a regular one.
    """
    _check_regular(path)
    model = ir.load(path)
    for tensor in _external_tensors(model):
        _check_regular(tensor.path)
        tensor.numpy()
    return model


def _check_regular(path: str | Path) -> None:
    os.close(open_regular(path, follow=True))  # nobody may ever write to a pipe


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """The tensors in other files, of all graphs and of attributes."""
    graphs = {id(graph): graph for graph in (model.graph, *model.graph.subgraphs())}
    held = [value.const_value for graph in graphs.values() for value in graph.initializers.values()]
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            held += [attribute.value] if attribute.type == ir.AttributeType.TENSOR else []
    yield from (tensor for tensor in held if isinstance(tensor, ir.ExternalTensor))
