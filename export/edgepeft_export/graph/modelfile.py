"""Read untrusted ``.onnx`` files, with the files of their tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx
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
        model = _load(Path(path))
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


DICTIONARIES = "ZipMap"
"""The operator by which converters of scikit-learn make dictionaries of probabilities."""


def _load(path: Path) -> ir.Model:
    try:
        return ir.load(path)
    except ir.serde.SerdeError:
        proto = onnx.load(path, load_external_data=False)
        if not _read_tensors_instead(proto.graph):
            raise
        model: ir.Model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)
        return model


def _read_tensors_instead(graph: onnx.GraphProto) -> bool:
    """Let outputs that are dictionaries, which onnx_ir cannot read, be the tensors that they are made of, in place."""
    made = {node.output[0]: node.input[0] for node in graph.node if node.op_type == DICTIONARIES}
    zipped = [output for output in graph.output if output.name in made]
    for output in zipped:
        output.CopyFrom(onnx.helper.make_tensor_value_info(made[output.name], onnx.TensorProto.FLOAT, [None, None]))
    kept = [info for info in graph.value_info if info.name not in made]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return bool(zipped)


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
