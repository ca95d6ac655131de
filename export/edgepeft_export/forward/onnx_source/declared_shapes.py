"""Shapes of a file's values: declared ones are checked by a run, and ones that cannot be inferred are read from it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import onnx_ir as ir

from edgepeft_export.graph.match import present
from edgepeft_export.graph.shapes import Dim, dims_of, infer_shapes
from edgepeft_export.verification.compare import Arrays
from edgepeft_export.verification.graph import inner_values

RunShape = tuple[int, ...]

_SIZES_FROM_DATA = frozenset({"NonZero", "Unique", "NonMaxSuppression", "Compress", "Loop", "SplitToSequence"})
"""Operators whose results may have one size in two runs by chance."""


def name_free_axes(graph: ir.Graph) -> None:
    """Give every free axis of an input a name, in place: ``batch`` where it is the first.

    An axis of size -1 or 0 is free, because converters write that for an unknown size, and so is one whose name is no
    word, such as ``?``: it says nothing about the other axes of that name.
    """
    for value in graph.inputs:
        if value.shape is not None and str(value.name) not in graph.initializers:
            value.shape = ir.Shape([_named(dim, str(value.name), axis) for axis, dim in enumerate(dims_of(value))])


def _named(dim: Dim, name: str, axis: int) -> Dim:
    if isinstance(dim, int) and dim > 0:
        return dim
    if isinstance(dim, str) and re.search(r"\w", dim):
        return dim
    return f"{name}_{axis}" if axis else "batch"


def fix_free_axes(graph: ir.Graph, feeds: Arrays) -> list[str]:
    """Give the free axes of inputs, but the batch, their sizes in a run, in place. Returns them as texts."""
    first = {dims_of(value)[0] for value in graph.inputs if value.shape is not None and len(value.shape)}
    fixed: dict[str, int] = {}
    for value in graph.inputs:
        if value.shape is None or str(value.name) not in feeds:
            continue
        sizes = feeds[str(value.name)].shape
        dims = dims_of(value)
        fixed |= {dim: sizes[at] for at, dim in enumerate(dims) if at and isinstance(dim, str) and dim not in first}
        value.shape = ir.Shape([fixed.get(dim, dim) if isinstance(dim, str) else dim for dim in dims])
    return [f"{name} = {size}" for name, size in fixed.items()]


_FIRST_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""Inputs that are states before the first step, [directions, batch, hidden]."""


def fix_batch_of_states(graph: ir.Graph) -> list[str]:
    """Give the batch the size of the first states that recurrent operators read, in place. Returns it as texts.

    Exporters write the example's batch into a state that is a constant or an input of its own.
    """
    fixed: dict[Dim, int] = {}
    for node in graph:
        states = [present(node, index) for index in _FIRST_STATES.get(node.op_type, ())]
        sizes = [dims_of(state)[1] for state in states if state is not None and state.shape is not None]
        x = node.inputs[0] if node.inputs else None
        if x is not None and x.shape is not None and len(x.shape) == 3:
            fixed |= {dims_of(x)[1]: size for size in sizes if isinstance(size, int)}
    for value in graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([fixed.get(dim, dim) for dim in dims_of(value)])
    return [f"{name} = {size}, the batch of its first states" for name, size in fixed.items() if isinstance(name, str)]


def fits(graph: ir.Graph, feeds: Arrays) -> bool:
    """Whether inputs have the sizes that the graph declares."""
    shapes = {str(value.name): dims_of(value) for value in graph.inputs if value.shape is not None}
    return all(
        isinstance(dim, str) or dim == size
        for name, array in feeds.items()
        for dim, size in zip(shapes.get(name, ()), array.shape, strict=False)
    )


def settle_shapes(model: ir.Model, feeds: Sequence[Arrays]) -> None:
    """Infer shapes again, and read those that cannot be inferred from a run, in place.

    Shapes that the file declares are only trusted where the run has them too.

    Args:
        model: as read.
        feeds: inputs for runs, of up to two sizes.
    """
    values = [value for node in model.graph for value in node.outputs if value.name]
    declared = {value: value.shape for value in values if value.shape is not None}
    for value in declared:
        value.shape = None
    infer_shapes(model)
    free = {dim for value in model.graph.inputs if value.shape is not None for dim in dims_of(value)}
    tensors = [value for value in values if not isinstance(value.type, (ir.SequenceType, ir.OptionalType))]
    unknown = {str(value.name): value for value in tensors if value.shape is None or value.dtype is None}
    outputs = {str(value.name): value for value in model.graph.outputs if value.producer() is not None}
    runs = _runs(model, feeds, [*{**unknown, **outputs}])
    symbols = _symbols(model.graph, feeds)
    constant = not any(node.op_type in _SIZES_FROM_DATA for node in model.graph)
    for name, value in {**unknown, **outputs}.items():
        shapes = [run[name][0] for run in runs if name in run]
        first = value.shape if value.shape is not None else _with_names(declared.get(value), free)
        if first is not None and _fits(first, shapes):
            value.shape = _settled(first, shapes, symbols, free, constant)
        else:
            value.shape = _learned(shapes, symbols, constant)
        if value.dtype is None and shapes:
            value.dtype = runs[0][name][1]
    infer_shapes(model)


def _runs(model: ir.Model, feeds: Sequence[Arrays], names: list[str]) -> list[dict[str, tuple[RunShape, ir.DataType]]]:
    return [
        {name: (array.shape, ir.DataType.from_numpy(array.dtype)) for name, array in inner_values(model, fed, names)}
        for fed in feeds
        if names
    ]


def _symbols(graph: ir.Graph, feeds: Sequence[Arrays]) -> dict[RunShape, str]:
    """The name of a free axis by its sizes in the runs; names that agree in all runs are left out."""
    by_sizes: dict[RunShape, set[str]] = {}
    for value in graph.inputs:
        for axis, dim in enumerate(dims_of(value) if value.shape is not None else ()):
            if isinstance(dim, str) and all(str(value.name) in fed for fed in feeds):
                by_sizes.setdefault(tuple(fed[str(value.name)].shape[axis] for fed in feeds), set()).add(dim)
    return {sizes: next(iter(names)) for sizes, names in by_sizes.items() if len(names) == 1 and len(set(sizes)) > 1}


def _with_names(shape: ir.Shape | None, names: Collection[Dim]) -> ir.Shape | None:
    """A declared shape without the names of an earlier inference, because this one assigns them to other axes."""
    if shape is None:
        return None
    dims = [dim if isinstance(dim, int) else dim.value for dim in shape]
    return ir.Shape([dim if isinstance(dim, int) or dim in names else None for dim in dims])


def _fits(shape: ir.Shape | None, shapes: Sequence[RunShape]) -> bool:
    """Whether a declared shape can be that of the runs."""
    if shape is None:
        return not shapes
    return all(
        len(sizes) == len(shape)
        and all(not isinstance(dim, int) or dim == size for dim, size in zip(shape, sizes, strict=True))
        for sizes in shapes
    )


def _settled(
    shape: ir.Shape, shapes: Sequence[RunShape], symbols: dict[RunShape, str], names: Collection[Dim], constant: bool
) -> ir.Shape:
    """The shape, in which runs say what a size is that has another name than those of the inputs."""
    learned = _learned(shapes, symbols, constant)
    dims, found = (
        [None] * len(shape) if given is None else [dim if isinstance(dim, int) else dim.value for dim in given]
        for given in (shape, learned)
    )
    return ir.Shape(
        [
            dim if isinstance(dim, int) or dim in names or size is None else size
            for dim, size in zip(dims, found, strict=True)
        ]
    )


def _learned(shapes: Sequence[RunShape], symbols: dict[RunShape, str], constant: bool) -> ir.Shape | None:
    """The shape that fits these runs. An axis whose size they leave open is free."""
    if not shapes or len({len(shape) for shape in shapes}) > 1:
        return None
    dims: list[Dim] = []
    for sizes in zip(*shapes, strict=True):
        same = len(sizes) > 1 and len(set(sizes)) == 1
        dims.append(int(sizes[0]) if same and constant else symbols.get(sizes))
    return ir.Shape(dims)
