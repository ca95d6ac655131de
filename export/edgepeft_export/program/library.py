"""The graph files of a bundle's segments, each once, with their names, and the tensors that calls bind to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from edgepeft_export.chunks import divide_rows
from edgepeft_export.graph.constants import initializer_tensor, same_memory, stored_array
from edgepeft_export.opset import IR_VERSION, OPSET
from edgepeft_export.passes.pipeline import tune
from edgepeft_export.program.kinds import (
    INPUT,
    OUTPUT,
    PARAMETER,
    WEIGHT,
    Backward,
    Wanted,
    backward_graph,
    flat_backward,
    forward_graph,
)
from edgepeft_export.program.structure import Structure

START, BLOCK = "start", "block"
"""Roles of segments, by which their files are named; others are named after their program."""

Finish = Callable[[ir.Model], None]
"""Lowers a graph to what devices run, in place."""


@dataclass
class Library:
    """Collects graphs of segments.

    Attributes:
        finish: called once with each graph.
        rows: that a train step computes at once between wide tensors.
        graphs: by the name of the file, without its extension.
        frozen: the tensors that calls bind, by name.
    """

    finish: Finish
    rows: int
    graphs: dict[str, ir.Model] = field(default_factory=dict)
    frozen: dict[str, ir.TensorProtocol] = field(default_factory=dict)
    _forwards: dict[str, ir.Model] = field(default_factory=dict)
    _divided: dict[str, ir.Model | None] = field(default_factory=dict)
    _training: dict[str, ir.Model | None] = field(default_factory=dict)
    _backwards: dict[tuple[str, Wanted], Backward] = field(default_factory=dict)
    _files: dict[tuple[object, ...], str] = field(default_factory=dict)
    _kinds: dict[str, str] = field(default_factory=dict)

    def forward(self, structure: Structure, opsets: Mapping[str, int]) -> ir.Model:
        """The forward graph of a kind, as ``forward_graph`` makes it."""
        if structure.digest not in self._forwards:
            self._forwards[structure.digest] = forward_graph(structure, opsets)
        return self._forwards[structure.digest]

    def divided(self, structure: Structure, opsets: Mapping[str, int]) -> ir.Model | None:
        """The same with a loop over chunks of rows; ``None`` where there is nothing to divide."""
        if structure.digest not in self._divided:
            model = self.forward(structure, opsets).clone()
            names = [f"{PARAMETER}.{index}" for index in range(len(structure.parameters))]
            self._divided[structure.digest] = model if divide_rows(model, names, self.rows) else None
        return self._divided[structure.digest]

    def training(self, structure: Structure, opsets: Mapping[str, int]) -> ir.Model | None:
        """The forward graph of a train step; ``None`` where it is that of other programs."""
        if structure.digest not in self._training:
            divided = self.divided(structure, opsets)
            model = (divided or self.forward(structure, opsets)).clone()
            self._training[structure.digest] = model if tune(model) or divided is not None else None
        return self._training[structure.digest]

    def backward(self, structure: Structure, opsets: Mapping[str, int], wanted: Wanted) -> Backward:
        """The backward graph of a kind."""
        key = structure.digest, wanted
        if key not in self._backwards:
            forward = self.divided(structure, opsets) or self.forward(structure, opsets)
            self._backwards[key] = backward_graph(forward, wanted)
        return self._backwards[key]

    def forward_file(self, structure: Structure, opsets: Mapping[str, int], role: str, *, trains: bool = False) -> str:
        """The name of a kind's forward graph: for a train step in chunks of rows, otherwise as merging reads it."""
        model, training = self.forward(structure, opsets), self.training(structure, opsets) if trains else None
        suffix = "" if role != BLOCK else ".forward"
        if training is not None:
            return self._file((structure.digest, "train"), structure, role, training.clone, f"{suffix}.train")
        return self._file((structure.digest,), structure, role, model.clone, suffix)

    def backward_file(
        self, structure: Structure, backward: Backward, wanted: Wanted, runs: Sequence[Sequence[int]], role: str
    ) -> str:
        """The name of a kind's backward graph. That of the loss returns the loss as well."""
        is_last = wanted.loss is not None

        def make() -> ir.Model:
            model = flat_backward(backward, runs, keep_outputs=is_last)
            tune(model)
            return model

        key = (structure.digest, wanted, tuple(map(tuple, runs)))
        return self._file(key, structure, role, make, "" if is_last else ".backward")

    def sum_file(self, value: ir.Value) -> str:
        """The name of a graph that adds two gradients of a value: ``first`` and ``second`` to ``sum``."""
        dims = None if value.shape is None else len(value.shape)
        key = ("sum", dims, value.dtype)
        if key not in self._files:
            number = sum(kind[0] == "sum" for kind in self._files)
            self._add(key, f"sum.{number}", _sum_graph(value))
        return self._files[key]

    def bind(self, value: ir.Value) -> str:
        """The name of a tensor that a call binds. Different tensors of one name get numbers."""
        tensor, name, number = initializer_tensor(value), str(value.name), 2
        while not _are_equal(self.frozen.setdefault(name, tensor), tensor):
            name, number = f"{value.name}.{number}", number + 1
        return name

    def _file(
        self, key: tuple[object, ...], structure: Structure, role: str, make: Callable[[], ir.Model], suffix: str
    ) -> str:
        if key not in self._files:
            stem = self._stem(structure, role)
            name, number = f"{stem}{suffix}", 2
            while name in self.graphs:
                name, number = f"{stem}{suffix}.{number}", number + 1
            self._add(key, name, make())
        return self._files[key]

    def _stem(self, structure: Structure, role: str) -> str:
        """The name of a kind. Blocks are numbered."""
        if role != BLOCK:
            return role
        return self._kinds.setdefault(structure.digest, f"{BLOCK}.{len(self._kinds)}")

    def _add(self, key: tuple[object, ...], name: str, model: ir.Model) -> None:
        self.finish(model)
        _drop_unread_inputs(model)
        self._files[key], self.graphs[name] = name, model


def bindings(structure: Structure, library: Library) -> dict[str, str]:
    """The values that a segment's inputs are bound to."""
    return {
        **{f"{INPUT}.{index}": str(value.name) for index, value in enumerate(structure.inputs)},
        **{f"{WEIGHT}.{index}": library.bind(value) for index, value in enumerate(structure.weights)},
        **{f"{PARAMETER}.{index}": str(value.name) for index, value in enumerate(structure.parameters)},
    }


def results(structure: Structure) -> dict[str, str]:
    """The values that a segment's outputs become."""
    return {f"{OUTPUT}.{index}": str(value.name) for index, value in enumerate(structure.outputs)}


def used(model: ir.Model, names: Mapping[str, str]) -> dict[str, str]:
    """The bindings of inputs that a graph has."""
    there = {str(value.name) for value in model.graph.inputs}
    return {name: value for name, value in names.items() if name in there}


def _are_equal(first: ir.TensorProtocol, second: ir.TensorProtocol) -> bool:
    """Whether two tensors have the same bytes. Programs share nearly all tensors, whose bytes are not read then."""
    if first is second or first.nbytes != second.nbytes:
        return first is second
    return same_memory(stored_array(first), stored_array(second)) or first.tobytes() == second.tobytes()


def _drop_unread_inputs(model: ir.Model) -> None:
    """Remove inputs that no node reads, in place: a backward graph needs fewer than it was derived from."""
    model.graph.inputs[:] = [value for value in model.graph.inputs if value.uses() or value.is_graph_output()]


def _sum_graph(value: ir.Value) -> ir.Model:
    shape = None if value.shape is None else [f"size_{axis}" for axis in range(len(value.shape))]
    inputs = [ir.Value(name=name, type=value.type) for name in ("first", "second")]
    for given in inputs:
        given.shape = None if shape is None else ir.Shape(shape)
    node = ir.node("Add", inputs)
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = "sum", inputs[0].shape, value.type
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": OPSET}, name="sum")
    return ir.Model(graph, ir_version=IR_VERSION)
