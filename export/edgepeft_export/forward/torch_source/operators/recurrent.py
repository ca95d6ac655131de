"""Exports ``nn.LSTM`` and ``nn.GRU`` as ONNX's own operators, for sequences of any length.

torch.export looks into both, step by step, and so fixes the number of steps. An operator of our own stands for them
while a model is traced, and becomes ONNX's LSTM or GRU, one per layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar

import onnx_ir as ir
import torch
from onnxscript.onnx_opset import opset20
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from edgepeft_export.forward.function_mode import Function, FunctionMode
from edgepeft_export.graph.shapes import dims_of

ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
"""ONNX's order of the gates (i, o, f, c and z, r, h), as positions in torch's (i, f, g, o and r, z, n)."""

KINDS = {"lstm": "LSTM", "gru": "GRU"}


_tracing: ContextVar[KeepRecurrent | None] = ContextVar("_tracing", default=None)


def over_lengths(rnn: nn.Module, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
    """Run a recurrent network over padded rows. A forward calls it instead of packing.

    In torch this is ``pack_padded_sequence``, the network, ``pad_packed_sequence``: both directions see each row only.
    The packing cannot be exported. This function can, with free sizes.

    Args:
        rnn: an ``nn.LSTM`` or ``nn.GRU``, adapted or not.
        x: [batch, steps, inputs] if ``rnn.batch_first``, else [steps, batch, inputs].
        lengths: int [batch], each from 1 to the number of steps.

    Returns:
        The result of ``rnn``: the states of all steps, 0 past the end of a row, and the last states of each row.
    """
    mode = _tracing.get()
    if mode is not None:
        with mode.ending(lengths):
            states, last = rnn(x)
        return _cut(states, lengths, 0 if rnn.batch_first else 1), last
    first = bool(rnn.batch_first)
    packed = pack_padded_sequence(x, lengths.cpu(), first, enforce_sorted=False)
    states, last = rnn(packed)
    return pad_packed_sequence(states, first, total_length=x.shape[1 if first else 0])[0], last


def _cut(states: Tensor, lengths: Tensor, rows: int) -> Tensor:
    """States with 0 past the ends of rows, even if an adapter added something there."""
    steps = torch.arange(states.shape[1 - rows])
    valid = steps[None] < lengths[:, None]
    return states * (valid if rows == 0 else valid.T)[..., None].to(states.dtype)


torch.library.define(
    "edgepeft::recurrent",
    "(Tensor x, Tensor[] first, bool bidirectional, Tensor? lengths, Tensor[] weights, str kind, int num_layers, "
    "bool batch_first) -> Tensor[]",
)


@torch.library.register_fake("edgepeft::recurrent")  # type: ignore[untyped-decorator]
def _(x: Tensor, first: Sequence[Tensor], bidirectional: bool, *_: object) -> list[Tensor]:
    """Shapes of the states of all steps, and of the last ones: the operator is only ever traced."""
    width = first[0].shape[2] * (2 if bidirectional else 1)
    return [x.new_empty(x.shape[0], x.shape[1], width), *(torch.empty_like(state) for state in first)]


class KeepRecurrent(FunctionMode):
    """While active, LSTM and GRU are one operator each in the traced graph."""

    def __init__(self) -> None:
        super().__init__()
        self._lengths: Tensor | None = None

    def __enter__(self) -> KeepRecurrent:
        self._token = _tracing.set(self)
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        _tracing.reset(self._token)

    @contextlib.contextmanager
    def ending(self, lengths: Tensor) -> Iterator[None]:
        """Use these lengths of rows for calls that are traced in the context."""
        self._lengths = lengths
        try:
            yield
        finally:
            self._lengths = None

    def call(self, function: Function, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> object:
        kind = KINDS.get(getattr(function, "__name__", ""))
        if kind is None or not _is_plain(args):
            return function(*args, **kwargs)
        x, first, weights, _, num_layers, _, _, bidirectional, batch_first = args
        states = list(first) if kind == "LSTM" else [first]
        recurrent = torch.ops.edgepeft.recurrent
        return tuple(recurrent(x, states, bidirectional, self._lengths, weights, kind, num_layers, batch_first))


def _is_plain(args: Sequence[Tensor]) -> bool:
    """Whether a call of torch's lstm or gru has no packed sequence and no projections, which ONNX lacks."""
    if len(args) != 9 or not isinstance(args[3], bool):  # a packed one has its weights there
        return False
    _, _, weights, has_biases, num_layers, _, _, bidirectional, _ = args
    return bool(len(weights) == (4 if has_biases else 2) * num_layers * (2 if bidirectional else 1))


def _translated(
    x: ir.Value,
    first: Sequence[ir.Value],
    bidirectional: bool,
    lengths: ir.Value | None,
    weights: Sequence[ir.Value],
    kind: str,
    num_layers: int,
    batch_first: bool,
) -> Sequence[ir.Value]:
    op = opset20
    directions = 2 if bidirectional else 1
    units = dims_of(weights[1])[1]
    assert isinstance(units, int)
    per_direction = len(weights) // (num_layers * directions)
    ends = None if lengths is None else op.Cast(lengths, to=6)
    initial = [_split(state, num_layers, 0) for state in first]
    last: list[list[ir.Value]] = [[] for _ in first]
    if batch_first:
        x = op.Transpose(x, perm=[1, 0, 2])
    for layer in range(num_layers):
        start = layer * directions * per_direction
        sets = [weights[start + at * per_direction :][:per_direction] for at in range(directions)]
        states = [part[layer] for part in initial]
        x, *after = _layer(x, ends, states, sets, kind, units)
        for states_of, state in zip(last, after, strict=True):
            states_of.append(state)
    if batch_first:
        x = op.Transpose(x, perm=[1, 0, 2])
    return [x, *(_join(states) for states in last)]


def _layer(
    x: ir.Value,
    ends: ir.Value | None,
    states: Sequence[ir.Value],
    sets: Sequence[Sequence[ir.Value]],
    kind: str,
    units: int,
) -> Sequence[ir.Value]:
    """One operator. Each of ``sets`` has a direction's weights and optional biases, in torch's order."""
    op = opset20
    order, count = ORDER[kind], len(sets)
    w, r = (
        _join([op.Unsqueeze(_reordered(one[index], order), op.Constant(value_ints=[0])) for one in sets])
        for index in (0, 1)
    )
    biases = [[_reordered(bias, order) for bias in tensors[2:4]] for tensors in sets]
    b = _join([op.Unsqueeze(_join(pair), op.Constant(value_ints=[0])) for pair in biases]) if biases[0] else None
    attributes = {"hidden_size": units, "direction": "bidirectional" if count == 2 else "forward"}
    if kind == "LSTM":
        y, *after = op.LSTM(x, w, r, b, ends, *states, **attributes)
    else:
        y, *after = op.GRU(x, w, r, b, ends, *states, linear_before_reset=1, **attributes)
    y = op.Transpose(y, perm=[0, 2, 1, 3])
    return [op.Reshape(y, op.Constant(value_ints=[0, 0, count * units])), *after]


def _reordered(weight: ir.Value, order: Sequence[int]) -> ir.Value:
    """The gates of a weight or bias, which lie along axis 0, in ONNX's order."""
    gates = _split(weight, len(order), 0)
    return _join([gates[index] for index in order])


def _split(value: ir.Value, count: int, axis: int) -> Sequence[ir.Value]:
    return [value] if count == 1 else list(opset20.Split(value, num_outputs=count, axis=axis))


def _join(values: Sequence[ir.Value]) -> ir.Value:
    return values[0] if len(values) == 1 else opset20.Concat(*values, axis=0)


TRANSLATION = {torch.ops.edgepeft.recurrent.default: _translated}
"""For ``torch.onnx.export(custom_translation_table=…)``."""
