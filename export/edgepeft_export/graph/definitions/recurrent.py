"""Recurrent operators as a loop over their steps, for what the gradient rules of the fused operators do not cover.

These are peepholes, gates that are clipped or coupled, and other activations than the usual ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import onnx_ir as ir

from edgepeft_export.graph.definitions.registry import NotDefined, definition
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand
from edgepeft_export.graph.nested.loops import loop
from edgepeft_export.graph.shapes import dims_of

_USUAL = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_KNOWN = {name.lower(): name for name in ("Sigmoid", "Tanh", "Relu", "HardSigmoid", "Softsign", "Softplus", "Elu")}

Values = Sequence[ir.Value]


@dataclass(frozen=True)
class _Cell:
    """One direction of a recurrent operator.

    Attributes:
        activations: names of its operators.
        clip: largest size of a gate before its activation.
        r: weights of the hidden state, [gates · hidden, hidden].
        r_bias: of the hidden state, [gates · hidden]; GRU multiplies a part of it by the reset gate.
        peepholes: of the gates i, o, f, each [hidden].
        units: hidden units.
        coupled: whether the forget gate is 1 - i.
        reset_after: whether the reset gate multiplies the product.
    """

    activations: Sequence[str]
    clip: float
    r: ir.Value
    r_bias: ir.Value | None
    peepholes: Values
    units: int
    coupled: bool
    reset_after: bool

    def act(self, emit: Emitter, index: int, value: ir.Value) -> ir.Value:
        """An activation of what was clipped."""
        if self.clip:
            value = emit.op("Clip", value, *(emit.scalar(side * self.clip, like=value) for side in (-1.0, 1.0)))
        return emit.op(self.activations[index], value)

    def product(self, emit: Emitter, h: ir.Value, rows: ir.Value) -> ir.Value:
        return emit.op("MatMul", h, emit.op("Transpose", rows, perm=[1, 0]))

    def split(self, emit: Emitter, value: ir.Value, count: int, axis: int = -1) -> Values:
        return emit.ops("Split", value, emit.ints(*[self.units] * count), axis=axis, outputs=count)


Step = Callable[[_Cell, Emitter, ir.Value, Values], Values]
"""From the gates of x with the input's bias, [N, gates · hidden], and the states to the states after a step."""


def _lstm(cell: _Cell, emit: Emitter, of_x: ir.Value, states: Values) -> Values:
    h, c = states
    total = emit.op("Add", of_x, cell.product(emit, h, cell.r))
    total = total if cell.r_bias is None else emit.op("Add", total, cell.r_bias)
    i, o, f, g = cell.split(emit, total, 4)

    def peep(gate: ir.Value, index: int, state: ir.Value) -> ir.Value:
        return emit.op("Add", gate, emit.op("Mul", cell.peepholes[index], state)) if cell.peepholes else gate

    i = cell.act(emit, 0, peep(i, 0, c))
    f = emit.op("Sub", emit.scalar(1.0, like=i), i) if cell.coupled else cell.act(emit, 0, peep(f, 2, c))
    c = emit.op("Add", emit.op("Mul", f, c), emit.op("Mul", i, cell.act(emit, 1, g)))
    o = cell.act(emit, 0, peep(o, 1, c))
    return emit.op("Mul", o, emit.op(cell.activations[2], c)), c


def _gru(cell: _Cell, emit: Emitter, of_x: ir.Value, states: Values) -> Values:
    (h,) = states
    xz, xr, xn = cell.split(emit, of_x, 3)
    rows = cell.split(emit, cell.r, 3, axis=0)
    biases: Sequence[ir.Value | None] = [None] * 3 if cell.r_bias is None else cell.split(emit, cell.r_bias, 3)

    def of_h(state: ir.Value, index: int) -> ir.Value:
        made, bias = cell.product(emit, state, rows[index]), biases[index]
        return made if bias is None else emit.op("Add", made, bias)

    z = cell.act(emit, 0, emit.op("Add", xz, of_h(h, 0)))
    reset = cell.act(emit, 0, emit.op("Add", xr, of_h(h, 1)))
    new = emit.op("Mul", reset, of_h(h, 2)) if cell.reset_after else of_h(emit.op("Mul", reset, h), 2)
    n = cell.act(emit, 1, emit.op("Add", xn, new))
    rest = emit.op("Mul", emit.op("Sub", emit.scalar(1.0, like=z), z), n)
    return (emit.op("Add", rest, emit.op("Mul", z, h)),)


def _rnn(cell: _Cell, emit: Emitter, of_x: ir.Value, states: Values) -> Values:
    total = emit.op("Add", of_x, cell.product(emit, states[0], cell.r))
    return (cell.act(emit, 0, total if cell.r_bias is None else emit.op("Add", total, cell.r_bias)),)


_STEPS: dict[str, tuple[Step, int, int]] = {"LSTM": (_lstm, 4, 2), "GRU": (_gru, 3, 1), "RNN": (_rnn, 1, 1)}
"""The step, the number of gates and of states."""


@definition("RNN")
@definition("GRU")
@definition("LSTM")
def recurrent(node: ir.Node, given: Sequence[ir.Value | None], emit: Emitter) -> Values:
    """The equations of ONNX's specification, a ``Scan`` for each direction."""
    x, w, r, bias, lengths, *firsts = [*given, *[None] * 8][:8]
    assert x is not None and w is not None and r is not None
    if node.attributes.get_int("layout", 0):
        raise NotDefined("its batch comes first (layout=1)", "transpose its input, so that the steps come first")
    step, gates, count = _STEPS[node.op_type]
    given_units = node.attributes.get("hidden_size")
    units = dims_of(operand(node, 2))[2] if given_units is None else given_units.as_int()
    if not isinstance(units, int):
        raise NotDefined("the number of hidden units is not known", "write the attribute hidden_size")
    flags = {"reverse": [True], "bidirectional": [False, True]}
    sides = flags.get(str(node.attributes.get_string("direction", "forward")), [False])
    names = _activations(node, len(sides))
    none = emit.zeros(emit.op("Concat", emit.dim(x, 1), emit.ints(units), axis=0), like=x)
    results = []
    for at, backwards in enumerate(sides):

        def part(value: ir.Value, at: int = at) -> ir.Value:
            return emit.op("Gather", value, emit.index(at), axis=0)

        both: Sequence[ir.Value | None] = (None, None)
        if bias is not None:
            both = emit.ops("Split", part(bias), emit.ints(*[gates * units] * 2), axis=0, outputs=2)
        peepholes = () if firsts[2] is None else emit.ops("Split", part(firsts[2]), emit.ints(*[units] * 3), outputs=3)
        cell = _Cell(
            names[at],
            node.attributes.get_float("clip", 0.0),
            part(r),
            both[1],
            peepholes,
            units,
            bool(node.attributes.get_int("input_forget", False)),
            bool(node.attributes.get_int("linear_before_reset", False)),
        )
        of_x = emit.op("MatMul", x, emit.op("Transpose", part(w), perm=[1, 0]))
        of_x = of_x if both[0] is None else emit.op("Add", of_x, both[0])
        states = [none if first is None else part(first) for first in firsts[:count]]

        def body(inside: Emitter, states: Values, slices: Values, cell: _Cell = cell) -> tuple[Values, Values]:
            after = step(cell, inside, slices[0], states)
            if lengths is None:
                return after, [after[0]]
            zero = inside.scalar(0.0, like=after[0])
            kept = [inside.op("Where", slices[1], new, old) for new, old in zip(after, states, strict=True)]
            return kept, [inside.op("Where", slices[1], after[0], zero)]

        slices = [of_x] if lengths is None else [of_x, _valid(x, lengths, emit)]
        results.append(loop(emit, states, slices, body, backwards=backwards))
    stacked = [
        emit.op("Concat", *(emit.op("Unsqueeze", made[index], emit.ints(axis)) for made in results), axis=axis)
        for index, axis in ((-1, 1), *((state, 0) for state in range(count)))
    ]
    return stacked[: len(node.outputs)]


def _valid(x: ir.Value, lengths: ir.Value, emit: Emitter) -> ir.Value:
    """Whether a step lies before the end of its row, [T, N, 1]."""
    end = emit.op("Squeeze", emit.dim(x, 0), emit.ints(0))
    steps = emit.op("Unsqueeze", emit.op("Range", emit.index(0), end, emit.index(1)), emit.ints(1, 2))
    ends = emit.op("Cast", lengths, to=ir.DataType.INT64.value)
    return emit.op("Less", steps, emit.op("Unsqueeze", ends, emit.ints(1)))


def _activations(node: ir.Node, directions: int) -> list[list[str]]:
    usual = _USUAL[node.op_type]
    given = node.attributes.get_strings("activations", None) or [*usual * directions]
    unknown = [name for name in given if name.lower() not in _KNOWN]
    if unknown or any(name in node.attributes for name in ("activation_alpha", "activation_beta")):
        reason = f"its activation is {unknown[0]}" if unknown else "its activations have settings of their own"
        raise NotDefined(reason, f"use one of {', '.join(_KNOWN.values())} as it is")
    names = [_KNOWN[name.lower()] for name in islice(cycle(given), len(usual) * directions)]
    return [names[start : start + len(usual)] for start in range(0, len(names), len(usual))]
