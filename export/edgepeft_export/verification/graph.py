"""Runs a forward graph unoptimized, without a copy of its weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes import common

from edgepeft_export.graph.constants import Widened
from edgepeft_export.graph.custom_ops import CONTRIB, lower
from edgepeft_export.graph.edit import insert_on_edge
from edgepeft_export.verification.compare import Array, Arrays

_LARGE = 1 << 16
"""Tensors of more bytes are lent to the session instead of written into the model."""

_LENT = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8, ir.DataType.UINT8)

_NEVER_READ = "lent"
"""Name of the file in which a model says that lent tensors are."""

_AT_ONCE = 64
"""Inner tensors that are computed in one run."""


class GraphRun:
    """A session over a graph in which nothing is optimized, folded or prepacked.

    Args:
        model: a forward graph, which may have operators of our own.
        outputs: names of the values to return; default: the graph's outputs.
    """

    def __init__(self, model: ir.Model, outputs: Sequence[str] | None = None) -> None:
        copy = model.clone()
        if outputs is not None:
            _set_outputs(copy.graph, outputs)
        lower(copy)
        common.RemoveUnusedNodesPass()(copy)  # onnxruntime refuses values for initializers that nothing reads
        common.NameFixPass()(copy)  # onnxruntime refuses two nodes of one name
        self._lent = _lend(copy)
        options = plain_options()
        if self._lent:
            # In the order of the nodes: onnxruntime's own order would convert all half tensors before it reads one.
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
            options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        self._session = _session(ir.to_proto(copy), options, self._lent)
        self.outputs = tuple(str(output.name) for output in self._session.get_outputs())
        self._inputs = {value.name for value in self._session.get_inputs()}

    def __call__(self, feeds: Arrays) -> dict[str, Array]:
        """Return the outputs by name."""
        given = {name: array for name, array in feeds.items() if name in self._inputs}
        return dict(zip(self.outputs, self._session.run(None, given), strict=True))


def _session(
    model: onnx.ModelProto, options: ort.SessionOptions, lent: Mapping[str, ort.OrtValue]
) -> ort.InferenceSession:
    """A session that reads lent tensors where they are.

    It would copy those of ``add_external_initializers``. Those of ``add_initializer`` are read by name, and the model
    has to say that they are in a file that exists: a sparse one, which is never read.
    """
    if not lent:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for name, value in lent.items():
        options.add_initializer(name, value)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        with (path.parent / _NEVER_READ).open("wb") as file:
            file.truncate(max(value.tensor_size_in_bytes() for value in lent.values()))
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def plain_options() -> ort.SessionOptions:
    """Options of a session that runs the graph unoptimized and logs nothing."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def inner_values(model: ir.Model, feeds: Arrays, names: Iterable[str]) -> Iterator[tuple[str, Array]]:
    """Values of a graph by name, a few at a time, so that they are never all in memory."""
    wanted = list(names)
    for start in range(0, len(wanted), _AT_ONCE):
        yield from GraphRun(model, wanted[start : start + _AT_ONCE])(feeds).items()


def _set_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    made = {value.name: value for node in graph for value in node.outputs}
    graph.outputs[:] = [made[name] for name in names]


def _lend(model: ir.Model) -> dict[str, ort.OrtValue]:
    """Replace each large tensor by a reference, and return them by name. Small ones are copied into the model."""
    lent = {}
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.nbytes > _LARGE and tensor.dtype in _LENT:
            name, array = _lend_one(model, value, tensor)
            lent[name] = array
        elif isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor)):
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
    return lent


def _lend_one(model: ir.Model, value: ir.Value, tensor: ir.TensorProtocol) -> tuple[str, ort.OrtValue]:
    """Let the graph read a tensor as the host has it in memory: transposed, or in half precision."""
    stored = tensor.narrow if isinstance(tensor, Widened) else tensor
    array = stored.numpy()
    if _is_transposed(array) and _only_multiplied(value):
        value, array = _read_transposed(model, value), array.T
    if isinstance(tensor, Widened):
        value = _read_narrow(model, value, stored.dtype)
    name = str(value.name)
    value.const_value = ir.ExternalTensor(
        _NEVER_READ, 0, stored.nbytes, stored.dtype, shape=ir.Shape(array.shape), name=name, base_dir=""
    )
    array = np.ascontiguousarray(array)  # onnxruntime copies other arrays and then does not use the lent one
    if stored.dtype == ir.DataType.BFLOAT16:
        narrow = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), stored.dtype.value)
        return name, narrow
    return name, ort.OrtValue.ortvalue_from_numpy(array)


def _is_transposed(array: Array) -> bool:
    """Whether an array is the transposed view of a matrix in memory, and no matrix itself."""
    return array.ndim == 2 and array.T.flags.c_contiguous and not array.flags.c_contiguous


def _only_multiplied(value: ir.Value) -> bool:
    return all(use.node.op_type == "MatMul" and not use.node.domain and use.idx == 1 for use in value.uses())


def _read_transposed(model: ir.Model, value: ir.Value) -> ir.Value:
    """Let the matmuls with a matrix read the transposed one instead, and return that."""
    other = _in_place_of(model, value, list(value.shape or ())[::-1], ir.DataType.FLOAT)
    for use in list(value.uses()):
        use.node.replace_input_with(1, other)
        use.node.domain, use.node.op_type = CONTRIB, "FusedMatMul"
        use.node.attributes["transB"] = ir.AttrInt64("transB", 1)
    model.opset_imports.setdefault(CONTRIB, 1)
    return other


def _read_narrow(model: ir.Model, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Let each reader of a tensor convert it from half precision just before it reads it, and return the tensor."""
    other = _in_place_of(model, value, list(value.shape or ()), dtype)
    for use in list(value.uses()):
        if use.node.op_type == "Gather" and use.idx == 0:  # converts the rows that it reads
            rows = use.node.outputs[0]
            use.node.replace_input_with(0, other)
            insert_on_edge(rows, ir.node("Cast", [rows], {"to": ir.DataType.FLOAT}))
            rows.type = ir.TensorType(dtype)
        else:
            cast = ir.node("Cast", [other], {"to": ir.DataType.FLOAT})
            use.node.prepend(cast)
            use.node.replace_input_with(use.idx, cast.outputs[0])
    return other


def _in_place_of(model: ir.Model, value: ir.Value, shape: list[int | ir.SymbolicDim], dtype: ir.DataType) -> ir.Value:
    """A new initializer instead of another, whose readers have yet to read it."""
    tensor = value.const_value
    model.graph.initializers.pop(str(value.name))
    other = ir.Value(name=f"{value.name}.lent", shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
    model.graph.register_initializer(other)
    return other
