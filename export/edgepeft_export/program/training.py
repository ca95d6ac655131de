"""The program of a train step: segments forward, the loss with its gradient, then segments backward."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgepeft_export.autodiff import dependents
from edgepeft_export.graph.shapes import is_float
from edgepeft_export.optimizer_graph import Bucket
from edgepeft_export.program.calls import forward_call
from edgepeft_export.program.cutting import Cut
from edgepeft_export.program.kinds import GRADIENT, INPUT, UPSTREAM, Backward, Wanted
from edgepeft_export.program.library import Library, bindings, results, used
from edgepeft_export.program.structure import Structure
from edgepeft_runtime.bundle.programs import Accumulation, Call

HEAD = "head.train"


@dataclass(frozen=True)
class Step:
    """The backward pass of one segment.

    Attributes:
        index: of the segment.
        wanted: the gradients that arrive and those that are needed.
        backward: the graph.
        needed: the inputs whose gradient this segment has to pass on.
    """

    index: int
    wanted: Wanted
    backward: Backward
    needed: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The segments of a train step and the gradients between them; the buckets are still unknown.

    Attributes:
        cut: the graph, whose outputs are the loss and its weight.
        steps: the backward passes, in the order they run.
    """

    cut: Cut
    steps: tuple[Step, ...]

    @property
    def reached(self) -> tuple[str, ...]:
        """The parameters that have a gradient, in the order the segments read them."""
        names = [
            str(self.cut.segments[step.index].parameters[index].name)
            for step in reversed(self.steps)
            for index in step.backward.parameters
        ]
        return tuple(dict.fromkeys(names))

    @property
    def start(self) -> ir.Value | None:
        """The one value below which nothing trains, if there is one."""
        lowest = min(step.index for step in self.steps)
        before = {value for structure in self.cut.segments[:lowest] for value in structure.outputs}
        read = [value for structure in self.cut.segments[lowest:] for value in structure.inputs if value in before]
        streams = dict.fromkeys(value for value in read if value in self.cut.segments[lowest - 1].outputs)
        return next(iter(streams)) if lowest > 1 and len(streams) == 1 else None


def plan(cut: Cut, parameters: Collection[str], library: Library) -> Plan:
    """Differentiate the segments, from the last to the first that something below which trains.

    Args:
        cut: of a graph whose first output is the loss.
        parameters: the inputs that train.
        library: gets the graphs.

    Raises:
        NoGradientRule: an operator between the loss and a parameter has no rule.
    """
    values = [value for value in cut.graph.inputs if value.name in parameters]
    depends = {value for value in dependents(list(cut.graph), values) if is_float(value)}
    needed = _needed_by_kind(cut, depends)
    arriving: set[ir.Value] = set()
    steps = []
    for index in reversed(range(len(cut.segments))):
        structure = cut.segments[index]
        wanted = _wanted(structure, cut.graph.outputs[0], arriving, depends)
        if (wanted.loss is None and not wanted.outputs) or not (wanted.inputs or wanted.parameters):
            continue
        wanted = replace(wanted, inputs=needed[structure.digest])
        backward = library.backward(structure, cut.opsets, wanted)
        steps.append(Step(index, wanted, backward, tuple(i for i in backward.inputs if structure.inputs[i] in depends)))
        arriving.update(structure.inputs[given] for given in steps[-1].needed)
    return Plan(cut, tuple(steps))


def _needed_by_kind(cut: Cut, depends: Collection[ir.Value]) -> dict[str, tuple[int, ...]]:
    """The inputs of each structure whose gradient a segment needs; the lowest block shares their graph."""
    needed: dict[str, set[int]] = {}
    for structure in cut.segments:
        found = {index for index, value in enumerate(structure.inputs) if value in depends}
        needed.setdefault(structure.digest, set()).update(found)
    return {digest: tuple(sorted(indices)) for digest, indices in needed.items()}


def _wanted(
    structure: Structure, loss: ir.Value, arriving: Collection[ir.Value], depends: Collection[ir.Value]
) -> Wanted:
    return Wanted(
        next((index for index, value in enumerate(structure.outputs) if value is loss), None),
        tuple(index for index, value in enumerate(structure.outputs) if value in arriving),
        tuple(index for index, value in enumerate(structure.inputs) if value in depends),
        tuple(index for index, value in enumerate(structure.parameters) if value in depends),
    )


def train_calls(plan: Plan, buckets: Sequence[Bucket], library: Library) -> list[Call]:
    """The calls of a train step.

    Args:
        plan: of the step.
        buckets: of the parameters that it reaches.
        library: gets the graphs.
    """
    cut, last = plan.cut, len(plan.cut.segments) - 1
    calls = [forward_call(cut, index, library, HEAD, trains=True) for index in range(last)]
    layout = _Layout.of(buckets)
    gradients: dict[ir.Value, str] = {}
    for step in plan.steps:
        structure = cut.segments[step.index]
        calls.append(_backward_call(cut, step, gradients, layout, library))
        for index in step.needed:
            value = structure.inputs[index]
            name = _part(value, step.index)
            if value in gradients:  # another segment reads it as well
                total = f"{GRADIENT}.{value.name}.from.{step.index}"
                calls.append(
                    Call(f"{library.sum_file(value)}.onnx", {"first": gradients[value], "second": name}, {"sum": total})
                )
                name = total
            gradients[value] = name
    return calls


def _part(value: ir.Value, index: int) -> str:
    """The gradient of a value by way of one segment."""
    return f"{GRADIENT}.{value.name}.in.{index}"


@dataclass(frozen=True)
class _Layout:
    """Bucket and offset of each parameter, and where it ends."""

    offsets: Mapping[str, tuple[str, int]]
    ends: Mapping[str, tuple[str, int]]

    @classmethod
    def of(cls, buckets: Sequence[Bucket]) -> _Layout:
        offsets, ends = {}, {}
        for bucket in buckets:
            offset = 0
            for name, size in zip(bucket.members, bucket.sizes, strict=True):
                offsets[name] = bucket.name, offset
                offset += size
                ends[name] = bucket.name, offset
        return cls(offsets, ends)


def _backward_call(cut: Cut, step: Step, gradients: Mapping[ir.Value, str], layout: _Layout, library: Library) -> Call:
    structure = cut.segments[step.index]
    runs = _runs(structure, step.backward, layout)
    file = library.backward_file(structure, step.backward, step.wanted, runs, cut.role(step.index, HEAD))
    arriving = {f"{UPSTREAM}.{index}": gradients[structure.outputs[index]] for index in step.wanted.outputs}
    inputs = used(library.graphs[file], bindings(structure, library) | arriving)
    outputs = {
        f"{GRADIENT}.{INPUT}.{index}": _part(structure.inputs[index], step.index) for index in step.backward.inputs
    }
    if step.wanted.loss is not None:
        outputs |= results(structure)
    firsts = [layout.offsets[str(structure.parameters[run[0]].name)] for run in runs]
    added = tuple(Accumulation(f"{GRADIENT}.{number}", *first) for number, first in enumerate(firsts))
    return Call(f"{file}.onnx", inputs, outputs, added)


def _runs(structure: Structure, backward: Backward, layout: _Layout) -> list[list[int]]:
    """Indices of parameters, in pieces that lie side by side in a bucket."""
    names = {index: str(structure.parameters[index].name) for index in backward.parameters}
    placed = [index for index in names if names[index] in layout.offsets]
    runs: list[list[int]] = []
    for index in sorted(placed, key=lambda index: layout.offsets[names[index]]):
        if runs and layout.ends[names[runs[-1][-1]]] == layout.offsets[names[index]]:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs
