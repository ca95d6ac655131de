"""Leaves out the pass in which torch's exporter decomposes operators, where no operator needs it.

The pass traces the whole program a second time, which takes longer than the first trace. Most networks need it for a
few operators alone, which have another name among those that the exporter translates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch.export import ExportedProgram

Table = Mapping[object, Callable[..., object]]

_aten = torch.ops.aten

_CONVERSIONS = (_aten.to.dtype, _aten.to.dtype_layout, _aten.to.device, _aten.to.other, _aten.detach_.default)
"""Operators that return their first argument, perhaps with another dtype. No gradient is traced here."""

_SYNONYMS = {_aten.__and__.Tensor: _aten.bitwise_and.Tensor, _aten.__or__.Tensor: _aten.bitwise_or.Tensor}

_COMPOSITE = (
    _aten.reshape.default,
    _aten.flatten.using_ints,
    _aten.chunk.default,
    _aten.contiguous.default,
    _aten.dropout.default,
)
"""Operators that torch always decomposes, because they may return a view, although the exporter translates them."""

_REMOVED = (
    _aten._assert_async.msg,
    _aten._assert_scalar.default,
    _aten._assert_tensor_metadata.default,
    _aten.sym_constrain_range_for_size.default,
)
"""Assertions, which the exporter removes."""


@contextlib.contextmanager
def decomposing_where_needed() -> Iterator[list[ExportedProgram]]:
    """A context in which a program is only decomposed if one of its operators needs it.

    Yields:
        The programs so far, as they were traced. What is decomposed has lost the conditions on sizes.
    """
    whole = ExportedProgram.run_decompositions
    programs: list[ExportedProgram] = []

    def run(program: ExportedProgram, table: Table | None = None, **others: Any) -> ExportedProgram:
        programs.append(program)
        nodes = [node for node in program.graph.nodes if node.op not in ("placeholder", "output")]
        if table is None or not all(map(_translated(table), nodes)):
            return whole(program, table, **others)
        for node in nodes:
            _rename(node)
        return program

    with mock.patch.object(ExportedProgram, "run_decompositions", run):
        yield programs


def _translated(table: Table) -> Callable[[fx.Node], bool]:
    """Whether the exporter translates an operator as it is, or under the name that ``_rename`` gives it.

    Args:
        table: the operators that it cannot translate, and how they are decomposed.
    """
    preserved = torch.export.default_decompositions()

    def translated(node: fx.Node) -> bool:
        target = node.target
        if node.op != "call_function" or isinstance(target, torch._ops.HigherOrderOperator):
            return False
        if not isinstance(target, torch._ops.OpOverload):
            return True  # Python's own operators, on sizes
        if target in _CONVERSIONS or target in _SYNONYMS or target in _COMPOSITE or target in _REMOVED:
            return True
        composite = target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
        return target not in table and not target._schema.is_mutable and (not composite or target in preserved)

    return translated


def _rename(node: fx.Node) -> None:
    """Write an operator by the name that the exporter translates, in place. The results stay the same."""
    if node.target in _SYNONYMS:
        node.target = _SYNONYMS[node.target]
    elif node.target in _CONVERSIONS or node.target is _aten.reshape.default:
        x, result = node.args[0], node.meta["val"]
        assert isinstance(x, fx.Node)
        before = x.meta["val"]
        if before.dtype != result.dtype:
            node.target, node.args, node.kwargs = _aten._to_copy.default, (x,), {"dtype": result.dtype}
        elif list(map(str, before.shape)) == list(map(str, result.shape)):  # symbols: comparing them would add guards
            node.target, node.args, node.kwargs = _aten.alias.default, (x,), {}
