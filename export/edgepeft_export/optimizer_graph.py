"""The optimizer graph.

Parameters, gradients, state, ``lr``, ``step`` and ``grad_scale`` go in; parameters, state and ``grad_norm`` come out.

On small tensors an optimizer's cost is its number of nodes, not its arithmetic. So they are updated together, as few
flat vectors ("buckets").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod

import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.graph.edit import add_input
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dims_of
from edgepeft_export.opset import IR_VERSION, OPSET
from edgepeft_export.optimizers.base import Hyper, Optimizer

ALONE = 1 << 20
"""Parameters with at least this many elements get their own bucket: copying them would cost more than extra nodes."""

SMALL = 1 << 13
"""Tensors of at most this many elements are joined along their first axis, and flattened together: copying them once
more costs less than a node for each."""

RESIDUAL = "residual"
"""State vector of the parts of gradients that have not been applied yet."""


@dataclass(frozen=True)
class Bucket:
    """Parameters that are updated as one flat float32 vector.

    Attributes:
        name: of the gradient accumulator, and suffix of the state's names.
        members: names of the parameters, in the order they lie in the vector.
        shapes: of the members.
        decay: whether weight decay applies.
    """

    name: str
    members: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    decay: bool

    @property
    def sizes(self) -> list[int]:
        """Elements of each member."""
        return [prod(shape) for shape in self.shapes]

    @property
    def size(self) -> int:
        """Elements of the vector."""
        return sum(self.sizes)

    @property
    def gradient(self) -> str:
        """Name of the flat gradient, an output of a train graph."""
        return f"{self.name}.gradient"


def plan_buckets(shapes: Mapping[str, tuple[int, ...]], no_decay: Sequence[str] = ()) -> tuple[Bucket, ...]:
    """Divide parameters into buckets.

    Weight decay does not apply to the names in ``no_decay`` and to ranks 0 and 1: biases, and scales of norms.
    """
    shared: dict[bool, list[str]] = {}
    groups: list[tuple[list[str], bool]] = []
    for name, shape in shapes.items():
        decay = len(shape) > 1 and name not in no_decay
        if prod(shape) >= ALONE:
            groups.append(([name], decay))
        elif decay in shared:
            shared[decay].append(name)
        else:
            shared[decay] = [name]
            groups.append((shared[decay], decay))
    return tuple(
        Bucket(f"gradients.{i}", tuple(names), tuple(shapes[name] for name in names), decay)
        for i, (names, decay) in enumerate(groups)
    )


def optimizer_graph(optimizer: Optimizer, buckets: Sequence[Bucket]) -> ir.Model:
    """Build ``optimizer.onnx``; names as in the bundle's specification, section 3."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="optimizer")
    emit = Emitter(graph, scope="optimizer")
    parameters = {
        name: add_input(graph, name, shape) for b in buckets for name, shape in zip(b.members, b.shapes, strict=True)
    }
    gradients = [add_input(graph, bucket.name, (bucket.size,)) for bucket in buckets]
    states = [[add_input(graph, name, (bucket.size,)) for name in state_names(optimizer, bucket)] for bucket in buckets]
    lr, scale = add_input(graph, "lr", ()), add_input(graph, "grad_scale", ())
    step = emit.op("Cast", add_input(graph, "step", (), ir.DataType.INT64), to=int(ir.DataType.DOUBLE))
    scaled = [emit.op("Mul", gradient, scale) for gradient in gradients]
    norm, clipped = _clip(emit, scaled, optimizer.max_grad_norm)
    for bucket, gradient, state in zip(buckets, clipped, states, strict=True):
        flat = flatten(emit, [parameters[name] for name in bucket.members], bucket.shapes)
        new, new_state = _updated(emit, optimizer, flat, gradient, state, Hyper(lr, step), bucket.decay)
        for value, source in zip(_split(emit, new, bucket), bucket.members, strict=True):
            _output(graph, value, f"{source}.next", parameters[source])
        for value, source_value in zip(new_state, state, strict=True):
            _output(graph, value, f"{source_value.name}.next", source_value)
    _output(graph, norm, "grad_norm", lr)
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="edgepeft")
    common.NameFixPass()(model)
    return model


def state_names(optimizer: Optimizer, bucket: Bucket) -> list[str]:
    """Names of the state vectors of a bucket: ``exp_avg.0`` for the bucket ``gradients.0``."""
    suffix = bucket.name.rpartition(".")[2]
    residual = [] if optimizer.gradient_fraction is None else [RESIDUAL]
    return [f"{name}.{suffix}" for name in (*optimizer.state(), *residual)]


def _updated(
    emit: Emitter,
    optimizer: Optimizer,
    parameter: ir.Value,
    gradient: ir.Value,
    state: Sequence[ir.Value],
    hyper: Hyper,
    decay: bool,
) -> tuple[ir.Value, Sequence[ir.Value]]:
    """One update; where a fraction of the gradient is applied, the last state vector is the part not applied so far."""
    if optimizer.gradient_fraction is None:
        return optimizer.update(emit, parameter, gradient, state, hyper, decay)
    total = emit.op("Add", gradient, state[-1])
    total.shape = state[-1].shape
    applied = _largest(emit, total, optimizer.gradient_fraction)
    parameter, inner = optimizer.update(emit, parameter, applied, state[:-1], hyper, decay)
    return parameter, (*inner, emit.op("Sub", total, applied))


def _largest(emit: Emitter, total: ir.Value, fraction: float) -> ir.Value:
    """The largest elements, zeros elsewhere. Elements equal to the bound are all included.

    Top-k sparsification with memory (Stich et al., NeurIPS 2018; Lin et al., ICLR 2018), per bucket: large tensors
    alone, small ones together.
    """
    (size,) = dims_of(total)
    assert isinstance(size, int)
    sizes = emit.op("Abs", total)
    largest, indices = emit.ops("TopK", sizes, emit.ints(max(1, round(fraction * size))), outputs=2, sorted=0)
    indices.dtype = ir.DataType.INT64
    bound = emit.op("ReduceMin", largest, keepdims=0)
    return emit.op("Where", emit.op("Less", sizes, bound), emit.scalar(0.0, like=total), total)


def _clip(emit: Emitter, gradients: Sequence[ir.Value], max_norm: float | None) -> tuple[ir.Value, Sequence[ir.Value]]:
    """The norm of the gradients, and the gradients clipped to ``max_norm`` as by torch's ``clip_grad_norm_``."""
    norm = emit.op("Sqrt", emit.add([emit.op("ReduceSumSquare", gradient, keepdims=0) for gradient in gradients]))
    if max_norm is None:
        return norm, gradients
    ratio = emit.op("Div", emit.scalar(max_norm, like=norm), emit.op("Add", norm, emit.scalar(1e-6, like=norm)))
    factor = emit.op("Min", ratio, emit.scalar(1.0, like=ratio))
    return norm, [emit.op("Mul", gradient, factor) for gradient in gradients]


def flatten(emit: Emitter, values: Sequence[ir.Value], shapes: Sequence[tuple[int, ...]]) -> ir.Value:
    """Concatenate tensors of these shapes to one new vector, in the order of a bucket's members."""
    flat = []
    for run in _runs(shapes):
        joined = _joined(emit, [values[index] for index in run])
        is_flat = len(shapes[run[0]]) == 1 and len(values) > 1
        flat.append(joined if is_flat else emit.op("Reshape", joined, emit.ints(-1)))
    return _joined(emit, flat)


def _split(emit: Emitter, value: ir.Value, bucket: Bucket) -> list[ir.Value]:
    """The members of a bucket, of its vector: the inverse of ``flatten``."""
    runs = [[bucket.shapes[index] for index in run] for run in _runs(bucket.shapes)]
    members: list[ir.Value] = []
    for shapes, part in zip(runs, _divided(emit, value, [sum(map(prod, run)) for run in runs]), strict=True):
        joined = shapes[0] if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])
        tensor = part if len(joined) == 1 else emit.op("Reshape", part, emit.ints(*joined))
        members += [tensor] if len(shapes) == 1 else _divided(emit, tensor, [shape[0] for shape in shapes])
    return members


def by_shape(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The same, with tensors that can be joined along their first axis side by side."""
    groups: dict[tuple[int, ...], dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        groups.setdefault((len(shape), *shape[1:]), {})[name] = shape
    return {name: shape for group in groups.values() for name, shape in group.items()}


def _runs(shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Indices of neighbours that are joined along their first axis."""

    def key(index: int) -> tuple[int, ...]:
        shape = shapes[index]
        return (index,) if len(shape) < 2 or prod(shape) > SMALL else (-len(shape), *shape[1:])

    return [list(run) for _, run in groupby(range(len(shapes)), key)]


def _joined(emit: Emitter, values: Sequence[ir.Value]) -> ir.Value:
    return values[0] if len(values) == 1 else emit.op("Concat", *values, axis=0)


def _divided(emit: Emitter, value: ir.Value, sizes: Sequence[int]) -> Sequence[ir.Value]:
    """Consecutive parts along the first axis."""
    return [value] if len(sizes) == 1 else emit.ops("Split", value, emit.ints(*sizes), outputs=len(sizes), axis=0)


def _output(graph: ir.Graph, value: ir.Value, name: str, like: ir.Value) -> None:
    value.name, value.shape, value.type = name, like.shape, like.type
    graph.outputs.append(value)
