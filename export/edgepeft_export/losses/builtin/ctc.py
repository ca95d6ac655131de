"""Connectionist temporal classification: the loss of sequences whose alignment with the input is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from edgepeft_export.errors import WrongLogitsRank
from edgepeft_export.graph.custom_ops import DOMAIN, STOP_GRADIENT, WITH_GRADIENT
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.nested.loops import loop
from edgepeft_export.graph.shapes import dims_of
from edgepeft_export.losses.base import Elements, Labels, LossTerms, MeanLoss, class_labels, mean_of
from edgepeft_export.losses.emitting import Values, first, known_dim, text
from edgepeft_runtime.errors import BadSetting
from edgepeft_runtime.settings import setting

_LENGTH = "labels_length"
"""The dimension of labels."""

_NEVER = -1e30
"""The logarithm of a probability of 0. Sums of thousands are finite, and differences of two are 0 instead of NaN."""

_UNREACHED = -1e29
"""Below it, no alignment has a probability above 0."""


@dataclass(frozen=True)
class CTC(MeanLoss):
    """``torch.nn.CTCLoss`` over scores ``[batch, time, classes]`` (Graves et al., ICML 2006).

    ``labels`` ``[batch, length]`` are padded at their end, by ``ignore_index`` or by the blank. A sequence that needs
    more frames than there are has an infinite loss.
    """

    name: ClassVar[str] = "ctc"
    reads_scores: ClassVar[bool] = True
    own_dimensions: ClassVar[Mapping[str, int]] = {_LENGTH: 2}
    blank: int = setting(0, "Class of the blank; negative ones count from the last class.")
    zero_infinity: bool = setting(False, "Sequences that are too long for their input have the loss 0.")
    length_normalized: bool = setting(True, "Divide each loss by the length of its labels, as torch's mean does.")
    frames: str | None = setting(
        None, "Name of an output, or else a label, with the number of frames that count; by default all do."
    )
    time_axis: int = setting(1, "Axis of the scores that the frames lie on: 1, or 0 with the batch on 1.")
    ignore_index: int = setting(-100, "Label that is padding, as every label below 0 and the blank are.")

    def targets(self, outputs: Values) -> Sequence[Labels]:
        dims = dims_of(first(outputs))
        if len(dims) != 3:
            raise WrongLogitsRank(
                f"CTC needs scores of shape [batch, time, classes]; the model returns {text(dims)}.",
                context=None,
                hint="let the model return a score per frame and class.",
            )
        if self.time_axis not in (0, 1):
            raise BadSetting("time_axis", self.time_axis, "0 or 1")
        batch = dims[1 - self.time_axis]
        labels = class_labels([batch, _LENGTH], dims[2], self.ignore_index)
        assert labels.classes is not None
        if not -labels.classes <= self.blank < labels.classes:
            raise BadSetting("blank", self.blank, f"one of the {labels.classes} classes")
        if self.frames is None or self.frames in outputs:
            return [labels]
        return [labels, Labels(self.frames, ir.DataType.INT64, (batch,))]

    def emit(self, emit: Emitter, outputs: Values, labels: Values) -> LossTerms:
        scores = first(outputs)
        if self.time_axis == 1:
            scores = emit.op("Transpose", scores, perm=[1, 0, 2])
        log_p = emit.op("LogSoftmax", scores, axis=2)
        frozen = emit.op(STOP_GRADIENT, log_p, domain=DOMAIN)
        targets = self._targets(emit, labels["labels"], known_dim(first(outputs), 2))
        alignment = _align(emit, frozen, targets, self._valid(emit, frozen, {**labels, **outputs}))
        example_weights = self.weights_in(labels)
        elements, reached = self._losses(emit, alignment.log_likelihood, targets.length)
        total, weight = mean_of(emit, Elements(elements), example_weights)
        factor = self._factors(emit, targets.length, reached, example_weights)
        gradient = _scattered(emit, log_p, targets.states, emit.op("Mul", alignment.occupancy, factor))
        total, gradient = (emit.op(STOP_GRADIENT, value, domain=DOMAIN) for value in (total, gradient))
        total.shape, gradient.shape = ir.Shape([]), _frames_first(first(outputs), self.time_axis)
        log_p.shape = gradient.shape
        return LossTerms(emit.op(WITH_GRADIENT, total, log_p, gradient, domain=DOMAIN), weight)

    def _targets(self, emit: Emitter, labels: ir.Value, classes: int) -> _Targets:
        blank = emit.scalar(self.blank % classes, like=labels)
        is_label = emit.op(
            "And", emit.op("GreaterOrEqual", labels, emit.scalar(0, like=labels)), _differ(emit, labels, blank)
        )
        counts = emit.op("ReduceSum", emit.cast(is_label, ir.DataType.INT64), emit.ints(1), keepdims=1)
        safe = emit.op("Unsqueeze", emit.op("Where", is_label, labels, blank), emit.ints(2))
        pairs = emit.op("Concat", emit.op("Expand", blank, emit.op("Shape", safe)), safe, axis=2)
        states = emit.op("Pad", emit.op("Reshape", pairs, emit.ints(0, -1)), emit.ints(0, 0, 0, 1), blank)
        moves = emit.op("And", _differ(emit, states, blank), _differ(emit, states, _shifted(emit, states, 2, blank)))
        return _Targets(states, counts, _log_of(emit, moves))

    def _valid(self, emit: Emitter, log_p: ir.Value, values: Values) -> ir.Value | None:
        """Whether a frame counts, [T, N, 1]; ``None`` if all do."""
        if self.frames is None:
            return None
        length = emit.op("Squeeze", emit.op("Shape", log_p, start=0, end=1))
        indices = emit.op("Range", emit.index(0), length, emit.index(1))
        before = emit.op("Less", emit.op("Unsqueeze", indices, emit.ints(1)), values[self.frames])
        return emit.op("Unsqueeze", before, emit.ints(2))

    def _losses(self, emit: Emitter, log_likelihood: ir.Value, length: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The loss of each example [N], and whether an alignment has a probability above 0 [N, 1]."""
        reached = emit.op("Greater", log_likelihood, emit.scalar(_UNREACHED, like=log_likelihood))
        otherwise = emit.scalar(0.0 if self.zero_infinity else np.inf, like=log_likelihood)
        losses = emit.op("Where", reached, emit.op("Neg", log_likelihood), otherwise)
        if self.length_normalized:
            losses = emit.op("Div", losses, _at_least_one(emit, length))
        return emit.op("Squeeze", losses, emit.ints(1)), reached

    def _factors(
        self, emit: Emitter, length: ir.Value, reached: ir.Value, example_weights: ir.Value | None
    ) -> ir.Value:
        """The factor of each example's gradient, [N, 1]."""
        factor = emit.op("Neg", emit.cast(reached, ir.DataType.FLOAT))
        if self.length_normalized:
            factor = emit.op("Div", factor, _at_least_one(emit, length))
        if example_weights is not None:
            factor = emit.op("Mul", factor, emit.op("Unsqueeze", example_weights, emit.ints(1)))
        return factor


class _Targets(NamedTuple):
    """The labels with a blank before, between and after them: S = 2 length + 1 states.

    Attributes:
        states: class of each state, int64 [N, S]. Those of padding are blanks.
        length: number of labels, int64 [N, 1].
        moves: log of whether the state can follow the one two before it, [N, S]: 0, or never.
    """

    states: ir.Value
    length: ir.Value
    moves: ir.Value


class _Alignment(NamedTuple):
    """The results of the forward and the backward recursion.

    Attributes:
        log_likelihood: of the labels, [N, 1].
        occupancy: probability of each state in each frame given the labels, [T, N, S]; 0 for frames that do not count.
    """

    log_likelihood: ir.Value
    occupancy: ir.Value


def _align(emit: Emitter, log_p: ir.Value, targets: _Targets, valid: ir.Value | None) -> _Alignment:
    """The forward-backward algorithm, in logarithms, over frames ``log_p`` [T, N, classes]."""
    scores = emit.op("GatherElements", log_p, _per_frame(emit, targets.states, log_p), axis=2)
    scores = emit.op("Max", scores, emit.scalar(_NEVER, like=log_p))
    last = _last_states(emit, targets)
    later_moves = _shifted(emit, targets.moves, -2, emit.scalar(_NEVER, like=log_p))
    slices = [scores] if valid is None else [scores, valid]

    def forwards(
        inside: Emitter, states: Sequence[ir.Value], parts: Sequence[ir.Value]
    ) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:
        after = inside.op("Add", _reached(inside, states[0], targets.moves, 1), parts[0])
        kept, largest = _centered(inside, after if valid is None else inside.op("Where", parts[1], after, states[0]))
        return [kept], [kept, largest]

    def backwards(
        inside: Emitter, states: Sequence[ir.Value], parts: Sequence[ir.Value]
    ) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:
        before = _reached(inside, inside.op("Add", states[0], parts[0]), later_moves, -1)
        kept, _ = _centered(inside, before if valid is None else inside.op("Where", parts[1], before, states[0]))
        return [kept], [states[0]]

    end, alpha, largest = loop(emit, [_first_state(emit, targets)], slices, forwards, backwards=False)
    _, beta = loop(emit, [last], slices, backwards, backwards=True)
    removed = emit.op("ReduceSum", largest, emit.ints(0), keepdims=0)
    log_likelihood = emit.op("Add", _log_sum(emit, emit.op("Add", end, last), 1), removed)
    both = emit.op("Add", alpha, beta)
    # Where there is no alignment, the bound makes the occupancy 0.
    total = emit.op("Max", _log_sum(emit, both, 2), emit.scalar(_UNREACHED, like=log_p))
    occupancy = emit.op("Exp", emit.op("Sub", both, total))
    if valid is not None:
        occupancy = emit.op("Mul", occupancy, emit.cast(valid, ir.DataType.FLOAT))
    return _Alignment(log_likelihood, occupancy)


def _reached(emit: Emitter, log_p: ir.Value, moves: ir.Value, by: int) -> ir.Value:
    """log Σ exp over a state, its neighbour, and the one after that where ``moves`` allows it, [N, S]."""
    never = emit.scalar(_NEVER, like=log_p)
    one = _shifted(emit, log_p, by, never)
    two = emit.op("Add", _shifted(emit, log_p, 2 * by, never), moves)
    largest = emit.op("Max", log_p, one, two)
    sums = [emit.op("Exp", emit.op("Sub", value, largest)) for value in (log_p, one, two)]
    total = emit.op("Add", largest, emit.op("Log", emit.op("Sum", *sums)))
    return emit.op("Max", total, never)


def _shifted(emit: Emitter, values: ir.Value, by: int, fill: ir.Value) -> ir.Value:
    """``values`` [N, S] moved by some states: state s has the value of state s - by."""
    pads = emit.ints(0, by, 0, -by)  # negative pads cut
    return emit.op("Pad", values, pads, fill)


def _centered(emit: Emitter, log_p: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Values [N, S] minus the largest of each row, and that [N, 1]: differences of large numbers are not exact."""
    largest = emit.op("ReduceMax", log_p, emit.ints(1), keepdims=1)
    is_reached = emit.op("Greater", largest, emit.scalar(_UNREACHED, like=log_p))
    largest = emit.op("Where", is_reached, largest, emit.scalar(0.0, like=log_p))
    return emit.op("Sub", log_p, largest), largest


def _log_sum(emit: Emitter, values: ir.Value, axis: int) -> ir.Value:
    """log Σ exp over the states."""
    largest = emit.op("ReduceMax", values, emit.ints(axis), keepdims=1)
    total = emit.op("ReduceSum", emit.op("Exp", emit.op("Sub", values, largest)), emit.ints(axis), keepdims=1)
    return emit.op("Add", largest, emit.op("Log", total))


def _first_state(emit: Emitter, targets: _Targets) -> ir.Value:
    """The state before the first frame, [N, S]: from it, the first blank and the first label can follow."""
    return _log_of(emit, emit.op("Equal", _indices(emit, targets), emit.index(0)))


def _last_states(emit: Emitter, targets: _Targets) -> ir.Value:
    """The states in which an alignment may end, [N, S]: the last label and the blank after it."""
    end = emit.op("Mul", targets.length, emit.index(2))
    before = emit.op("Sub", end, emit.index(1))
    indices = _indices(emit, targets)
    return _log_of(emit, emit.op("Or", emit.op("Equal", indices, end), emit.op("Equal", indices, before)))


def _indices(emit: Emitter, targets: _Targets) -> ir.Value:
    """The index of each state, int64 [N, S]."""
    ones = emit.op("Expand", emit.index(1), emit.op("Shape", targets.states))
    return emit.op("CumSum", ones, emit.index(1), exclusive=1)


def _log_of(emit: Emitter, condition: ir.Value) -> ir.Value:
    """0 where the condition is true, never where it is not."""
    return emit.op("Where", condition, *(emit.constant(np.asarray(number, np.float32)) for number in (0, _NEVER)))


def _per_frame(emit: Emitter, states: ir.Value, log_p: ir.Value) -> ir.Value:
    """States [N, S] repeated for each frame, [T, N, S]."""
    frames = emit.op("Shape", log_p, start=0, end=1)
    shape = emit.op("Concat", frames, emit.op("Shape", states), axis=0)
    return emit.op("Expand", states, shape)


def _scattered(emit: Emitter, log_p: ir.Value, states: ir.Value, values: ir.Value) -> ir.Value:
    """Add values of states [T, N, S] to their classes, [T, N, classes]."""
    zeros = emit.zeros(emit.op("Shape", log_p), like=log_p)
    return emit.op("ScatterElements", zeros, _per_frame(emit, states, log_p), values, axis=2, reduction="add")


def _differ(emit: Emitter, left: ir.Value, right: ir.Value) -> ir.Value:
    return emit.op("Not", emit.op("Equal", left, right))


def _at_least_one(emit: Emitter, length: ir.Value) -> ir.Value:
    return emit.cast(emit.op("Max", length, emit.index(1)), ir.DataType.FLOAT)


def _frames_first(scores: ir.Value, time_axis: int) -> ir.Shape:
    one, two, classes = dims_of(scores)
    return ir.Shape([one, two, classes] if time_axis == 0 else [two, one, classes])
