"""Puts the calls of a program together into one ordinary graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.graph.edit import add_input
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import static_dims
from edgepeft_export.opset import IR_VERSION
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.plan import given_to, results_of
from edgepeft_runtime.bundle.program_checks import WEIGHTS
from edgepeft_runtime.bundle.programs import TRAIN, Call
from edgepeft_runtime.bundle.specs import FrozenSpec, TensorSpec


def link(bundle: Bundle, program: str) -> ir.Model:
    """A program as one graph, whose tensors lie in the bundle's ``weights.bin``.

    Inputs are those of the batch and the parameters, outputs the results; of ``train``, also the flat gradient of each
    bucket, ``<bucket>.gradient``.
    """
    calls = bundle.manifest.programs.by_name()[program]
    if len(calls) == 1 and _is_plain(calls[0]):
        return ir.load(bundle.file(calls[0].graph))
    linker = _Linker(bundle, program)
    for index, call in enumerate(calls):
        linker.add(index, call)
    return linker.finished()


def _is_plain(call: Call) -> bool:
    """Whether the names of a graph are those of the values."""
    gradients = all(item.output == f"{item.bucket}.gradient" for item in call.accumulate)
    return gradients and not call.inputs and not call.outputs


class _Linker:
    """Collects the nodes of calls in one graph."""

    def __init__(self, bundle: Bundle, program: str) -> None:
        self._bundle, self._program = bundle, program
        self._graph = ir.Graph([], [], nodes=[], opset_imports={}, name=program)
        given = given_to(bundle.manifest, program)
        specs: Sequence[TensorSpec] = (*bundle.manifest.inputs, *bundle.manifest.labels, *bundle.manifest.parameters)
        self._values = {
            spec.name: add_input(self._graph, spec.name, spec.shape, ir.DataType.from_numpy(np.dtype(spec.dtype)))
            for spec in specs
            if spec.name in given
        }
        self._frozen = {spec.name: spec for spec in bundle.manifest.frozen}
        self._graphs: dict[str, ir.Model] = {}
        self._gradients: dict[str, dict[int, list[ir.Value]]] = {}

    def add(self, index: int, call: Call) -> None:
        """Append the nodes of a call."""
        graph = self._read(call.graph).graph.clone()
        outputs = list(graph.outputs)
        names = [str(value.name) for value in outputs]
        self._take_constants(graph, index)
        for value in graph.inputs:
            value.replace_all_uses_with(self._value(call.inputs.get(str(value.name), str(value.name))))
        nodes = list(graph)
        for node in nodes:
            node.name = f"{node.name}.{index}"
            for output in node.outputs:
                output.name = f"{output.name}.{index}"
        graph.outputs.clear()
        graph.remove(nodes)
        self._graph.extend(nodes)
        for domain, version in graph.opset_imports.items():
            self._graph.opset_imports[domain] = max(version, self._graph.opset_imports.get(domain, 0))
        added = {item.output: item for item in call.accumulate}
        for name, value in zip(names, outputs, strict=True):
            if name in added:
                parts = self._gradients.setdefault(added[name].bucket, {})
                parts.setdefault(added[name].offset, []).append(value)
            if name in call.outputs or name not in added:
                value.name = call.outputs.get(name, name)
                self._values[value.name] = value

    def finished(self) -> ir.Model:
        """The graph with the results as outputs."""
        self._graph.outputs.extend(self._values[name] for name in results_of(self._bundle.manifest, self._program))
        if self._program == TRAIN:
            emit = Emitter(self._graph, scope="gradients")
            for bucket in self._bundle.manifest.buckets:
                flat = _joined(emit, self._gradients[bucket.name], bucket.size)
                flat.name, flat.shape = f"{bucket.name}.gradient", ir.Shape([bucket.size])
                self._graph.outputs.append(flat)
        model = ir.Model(self._graph, ir_version=IR_VERSION, producer_name="edgepeft")
        common.RemoveUnusedNodesPass()(model)
        return model

    def _read(self, name: str) -> ir.Model:
        if name not in self._graphs:
            self._graphs[name] = ir.load(self._bundle.file(name))
        return self._graphs[name]

    def _value(self, name: str) -> ir.Value:
        """A value that exists; a frozen tensor becomes an initializer when it is first read."""
        if name not in self._values:
            self._values[name] = _initializer(self._frozen[name], self._bundle)
            self._graph.register_initializer(self._values[name])
        return self._values[name]

    def _take_constants(self, graph: ir.Graph, index: int) -> None:
        for value in list(graph.initializers.values()):
            del graph.initializers[str(value.name)]
            if value.name in self._graph.initializers or value.name in self._frozen:
                value.name = f"{value.name}.{index}"
            self._graph.register_initializer(value)


def _initializer(spec: FrozenSpec, bundle: Bundle) -> ir.Value:
    dtype = ir.DataType.from_numpy(np.dtype(getattr(ml_dtypes, spec.dtype, spec.dtype)))
    shape = ir.Shape(spec.shape)
    tensor = ir.ExternalTensor(
        WEIGHTS, spec.offset, spec.bytes, dtype, shape=shape, name=spec.name, base_dir=bundle.path
    )
    return ir.Value(name=spec.name, shape=shape, type=ir.TensorType(dtype), const_value=tensor)


def _joined(emit: Emitter, parts: Mapping[int, Iterable[ir.Value]], size: int) -> ir.Value:
    """The flat gradient of a bucket from sums of parts at offsets; zeros where there is none."""
    pieces, end = [], 0
    for offset in sorted(parts):
        total = emit.add(list(parts[offset]))
        length = prod(static_dims(next(iter(parts[offset]))) or ())
        assert offset >= end, "parts of a bucket overlap"
        if offset > end:
            pieces.append(emit.constant(np.zeros(offset - end, np.float32)))
        pieces.append(total)
        end = offset + length
    if end < size:
        pieces.append(emit.constant(np.zeros(size - end, np.float32)))
    joined = pieces[0] if len(pieces) == 1 else emit.op("Concat", *pieces, axis=0)
    joined.dtype = ir.DataType.FLOAT
    return joined
