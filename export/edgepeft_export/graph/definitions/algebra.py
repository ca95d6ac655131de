"""Arithmetic on the values of a graph in the notation of formulas."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter


@dataclass(frozen=True)
class Term:
    """A value, and the emitter that writes what is computed from it. Numbers become constants of its dtype."""

    value: ir.Value
    emit: Emitter

    def __add__(self, other: Term | float) -> Term:
        return self._with("Add", other)

    def __sub__(self, other: Term | float) -> Term:
        return self._with("Sub", other)

    def __mul__(self, other: Term | float) -> Term:
        return self._with("Mul", other)

    def __truediv__(self, other: Term | float) -> Term:
        return self._with("Div", other)

    def __pow__(self, other: Term | float) -> Term:
        return self._with("Pow", other)

    def at_least(self, other: Term | float) -> Term:
        return self._with("Max", other)

    def at_most(self, other: Term | float) -> Term:
        return self._with("Min", other)

    def __abs__(self) -> Term:
        return self.apply("Abs")

    def floor(self) -> Term:
        """Without a gradient."""
        return self.apply("Floor")

    def is_at_least(self, other: Term | float) -> Term:
        """1 where it is, else 0; without a gradient."""
        return self._flag("GreaterOrEqual", other)

    def equals(self, other: Term | float) -> Term:
        """1 where it does, else 0; without a gradient."""
        return self._flag("Equal", other)

    def apply(self, op_type: str, *others: ir.Value, **attributes: int) -> Term:
        """Another operator of which it is the first input."""
        return Term(self.emit.op(op_type, self.value, *others, domain="", **attributes), self.emit)

    def cast(self, dtype: ir.DataType) -> Term:
        return Term(self.emit.cast(self.value, dtype), self.emit)

    def _flag(self, op_type: str, other: Term | float) -> Term:
        assert self.value.dtype is not None
        return self._with(op_type, other).cast(self.value.dtype)

    def _with(self, op_type: str, other: Term | float) -> Term:
        right = other.value if isinstance(other, Term) else self.emit.scalar(other, like=self.value)
        return Term(self.emit.op(op_type, self.value, right), self.emit)
