"""The sizes for which a trace is right: torch.export records the conditions on sizes that the model's branches met.

The exporter keeps none of them, so a graph would compute the branch of the example at all sizes, without any error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import sympy
import torch
from torch import Tensor
from torch.export import ExportedProgram

from edgepeft_export.forward.graph import SizeRange
from edgepeft_export.graph.shapes import Dim

_NEAR = 16
"""Sizes up to so far from the traced one are examined, and those next to a number in a condition."""

_LARGEST = 1 << 31
"""A limit above this is none."""


@dataclass(frozen=True)
class TracedSize:
    """The limits of one free size in a trace.

    Attributes:
        size: in the trace.
        limits: the range in which all conditions on the size are met.
        gaps: sizes within that range, near the traced one, at which a condition is not met.
        related: the nearest size at which a condition on this and other sizes is not met while those are as traced.
    """

    size: int
    limits: SizeRange = field(default_factory=SizeRange)
    gaps: tuple[int, ...] = ()
    related: int | None = None


def traced_sizes(
    program: ExportedProgram, inputs: Sequence[str], axes: Mapping[str, Mapping[int, str]]
) -> dict[str, TracedSize]:
    """The limits of each free size in a trace.

    Args:
        program: torch's, before it is decomposed.
        inputs: names of the free inputs, which come first.
        axes: the names of their free sizes.
    """
    found: dict[str, TracedSize] = {}
    users = [
        node
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    for node, name in zip(users, inputs, strict=False):
        shape = getattr(node.meta.get("val"), "shape", ())
        for axis, dimension in axes.get(name, {}).items():
            if isinstance(shape[axis], torch.SymInt) and isinstance(shape[axis].node.expr, sympy.Symbol):
                found[dimension] = _traced(shape[axis])
    return found


def _traced(size: torch.SymInt) -> TracedSize:
    node = size.node
    symbol, example, known = node.expr, int(node.hint), node.shape_env
    noted = [*known.guards, *(each for several in known.deferred_runtime_asserts.values() for each in several)]
    conditions = {each.expr for each in noted if each.expr.free_symbols == {symbol}}
    span = known.var_to_range[symbol]
    low = 1 if span.lower <= 2 else int(span.lower)  # every size is traced as at least 2
    high = int(span.upper) if span.upper < _LARGEST else None
    missed = [n for n in _candidates(conditions, example) if not all(_holds(each, symbol, n) for each in conditions)]
    met = [n for n in _candidates(conditions, example) if n not in missed]
    below = [n for n in missed if low <= n < min(met, default=example)]
    above = [n for n in missed if max(met, default=example) < n <= (high or n)]
    limits = SizeRange(max(below) + 1 if below else low, min(above) - 1 if above else high)
    gaps = tuple(n for n in missed if limits.least <= n <= (limits.most or n))
    return TracedSize(example, limits, gaps, _related(size, [each.expr for each in noted], limits))


def _related(size: torch.SymInt, conditions: Sequence[sympy.Basic], limits: SizeRange) -> int | None:
    """The nearest size at which a condition on it and others is not met while those are as traced."""
    node = size.node
    hints = {symbol: int(value) for symbol, value in node.shape_env.backed_var_to_val.items()}
    others = {symbol: value for symbol, value in hints.items() if symbol != node.expr}
    joint = [each for each in conditions if node.expr in each.free_symbols and len(each.free_symbols) > 1]
    known = {each.subs(others) for each in joint if each.free_symbols <= hints.keys()}
    near = [n for n in _candidates(known, int(node.hint)) if limits.least <= n <= (limits.most or n)]
    missed = [n for n in near if not all(_holds(each, node.expr, n) for each in known)]
    return min(missed, key=lambda n: abs(n - int(node.hint)), default=None)


def _candidates(conditions: Iterable[sympy.Basic], example: int) -> list[int]:
    """Sizes near the example, and at the numbers in the conditions, in ascending order."""
    near = {*range(example - _NEAR, example + _NEAR + 1)}
    numbers = {int(number) for each in conditions for number in each.atoms(sympy.Integer)}
    return sorted(n for n in near.union(*({n - 1, n, n + 1} for n in numbers)) if 2 <= n < _LARGEST)


def _holds(condition: sympy.Basic, symbol: sympy.Symbol, size: int) -> bool:
    return condition.subs(symbol, size) is not sympy.false


def with_size(tensor: Tensor, axis: int, size: int) -> Tensor:
    """A tensor of another size along an axis, by repetition or cutting. Integers in ascending order stay so.

    Such are the offsets of bags of tokens.
    """
    changed = tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])
    ascend = tensor.ndim == 1 and not tensor.is_floating_point() and bool((tensor[1:] >= tensor[:-1]).all())
    return changed.sort().values if ascend else changed


def simplified(dim: Dim, limits: Mapping[str, SizeRange]) -> Dim:
    """A size by an equal formula without the minimum of another size and its limit.

    A table of 64 positions that is cut to a sequence has ``Min(64, sequence)`` rows: ``sequence``, of at most 64.
    """
    if not isinstance(dim, str) or "Min(" not in dim:
        return dim
    words = re.findall(r"\b[A-Za-z_]\w*\b(?!\()", dim)
    names = {word: sympy.Symbol(word, integer=True, positive=True) for word in words}
    most = {names[name]: limit.most for name, limit in limits.items() if name in names}
    formula = sympy.sympify(dim, locals={**names, "Min": lambda *terms: _least(terms, most)})
    return str(formula) if formula.is_Symbol or formula.is_Integer else dim


def _least(terms: Iterable[sympy.Expr], most: Mapping[sympy.Symbol, int | None]) -> sympy.Expr:
    """The minimum, where it is known that a size is not above the numbers."""
    terms = tuple(map(sympy.sympify, terms))
    sizes = [term for term in terms if not term.is_Integer]
    bounds = [int(term) for term in terms if term.is_Integer]
    limit = most.get(sizes[0]) if len(sizes) == 1 else None
    return sizes[0] if limit is not None and limit <= min(bounds) else sympy.Min(*terms)
