"""The losses of ``torch.nn``, with their values and their ``reduction="mean"``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import Dim, dims_of, rank
from edgepeft_export.losses.base import Labels, Loss, LossError, LossTerms, class_labels

Values = Mapping[str, ir.Value]


@dataclass(frozen=True)
class CrossEntropy:
    """``torch.nn.CrossEntropyLoss`` with class indices.

    Attributes:
        label_smoothing: share of the target spread evenly over all classes, 0 <= share < 1.
        class_weights: a weight per class, or ``None``.
        ignore_index: the label that does not count.
        class_axis: axis of the logits that holds the classes: -1 as transformers give them, 1 for images (N, C, H, W).
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    ignore_index: int = -100
    class_axis: int = -1

    def labels(self, outputs: Values) -> Sequence[Labels]:
        _check_share("label_smoothing", self.label_smoothing)
        dims = dims_of(_first(outputs))
        if len(dims) < 2:
            raise LossError(
                "logits-rank",
                f"Cross-entropy needs logits of shape [batch, ..., classes]; the model gives {_text(dims)}.",
                context=None,
                hint="choose another loss, or let the model give a score per class.",
            )
        if not -len(dims) <= self.class_axis < len(dims):
            raise _out_of_range("class_axis", self.class_axis, f"choose an axis of the logits {_text(dims)}.")
        axis = self.class_axis % len(dims)
        labels = class_labels(dims[:axis] + dims[axis + 1 :], dims[axis], self.ignore_index)
        if self.class_weights is not None:
            _check_class_weights(self.class_weights, dims[axis])
        return [labels]

    def emit(self, emit: Emitter, outputs: Values, labels: Values) -> LossTerms:
        logits, target = _rows(emit, _first(outputs), labels["labels"], self.class_axis)
        return _cross_entropy(emit, logits, target, self)

    def describe(self) -> dict[str, Any]:
        return {"kind": "cross_entropy", **asdict(self)}


FIRST_LOGITS = "first_logits"
"""Output of a causal model with a prompt: what the prompt's last position predicts, the input's first token."""


@dataclass(frozen=True)
class CausalLM:
    """Cross-entropy of each token given those before it, as transformers' ``ForCausalLMLoss``.

    ``labels`` are the input ids as they are; they are shifted here. Where the model learns a prompt, it has an output
    ``first_logits`` [batch, vocabulary], and the first token counts too, given the prompt.

    Attributes:
        ignore_index: the label that does not count; give it to padding.
        label_smoothing: as in :class:`CrossEntropy`.
    """

    ignore_index: int = -100
    label_smoothing: float = 0.0

    def labels(self, outputs: Values) -> Sequence[Labels]:
        _check_share("label_smoothing", self.label_smoothing)
        dims = dims_of(_first(outputs))
        if len(dims) != 3:
            raise LossError(
                "logits-rank",
                f"A causal language model gives logits [batch, sequence, vocabulary]; this one gives {_text(dims)}.",
                context=None,
                hint="choose cross_entropy for a classifier.",
            )
        return [class_labels(dims[:2], dims[2], self.ignore_index)]

    def emit(self, emit: Emitter, outputs: Values, labels: Values) -> LossTerms:
        logits, target = _first(outputs), labels["labels"]
        # The last token predicts nothing: its label is made one that does not count, which spares a copy of the logits.
        following = emit.op("Slice", target, emit.ints(1), emit.ints(np.iinfo(np.int64).max), emit.ints(1))
        padded = emit.op("Pad", following, emit.ints(0, 0, 0, 1), emit.scalar(self.ignore_index, like=target))
        flat = emit.op("Reshape", logits, emit.ints(-1, _known(logits, 2)))
        settings = CrossEntropy(self.label_smoothing, None, self.ignore_index)
        terms = _cross_entropy(emit, flat, emit.op("Reshape", padded, emit.ints(-1)), settings)
        if FIRST_LOGITS not in outputs:
            return terms
        first = emit.op("Squeeze", emit.op("Slice", target, emit.ints(0), emit.ints(1), emit.ints(1)), emit.ints(1))
        given_prompt = _cross_entropy(emit, outputs[FIRST_LOGITS], first, settings)
        return LossTerms(*(emit.op("Add", *pair) for pair in zip(terms, given_prompt, strict=True)))

    def describe(self) -> dict[str, Any]:
        return {"kind": "causal_lm", **asdict(self)}


@dataclass(frozen=True)
class MSE:
    """``torch.nn.MSELoss``: labels have the output's shape."""

    def labels(self, outputs: Values) -> Sequence[Labels]:
        return [_targets(outputs)]

    def emit(self, emit: Emitter, outputs: Values, labels: Values) -> LossTerms:
        difference = emit.op("Sub", _first(outputs), labels["labels"])
        return _mean_of_all(emit, emit.op("Mul", difference, difference))

    def describe(self) -> dict[str, Any]:
        return {"kind": "mse"}


@dataclass(frozen=True)
class L1:
    """``torch.nn.L1Loss``: labels have the output's shape."""

    def labels(self, outputs: Values) -> Sequence[Labels]:
        return [_targets(outputs)]

    def emit(self, emit: Emitter, outputs: Values, labels: Values) -> LossTerms:
        return _mean_of_all(emit, emit.op("Abs", emit.op("Sub", _first(outputs), labels["labels"])))

    def describe(self) -> dict[str, Any]:
        return {"kind": "l1"}


@dataclass(frozen=True)
class BCEWithLogits:
    """``torch.nn.BCEWithLogitsLoss``: labels are probabilities of the output's shape.

    Attributes:
        pos_weight: factor of the positive term, 0 or more; above 1 for rare positives.
    """

    pos_weight: float = 1.0

    def labels(self, outputs: Values) -> Sequence[Labels]:
        if not 0.0 <= self.pos_weight < np.inf:
            raise _out_of_range("pos_weight", self.pos_weight, "choose a finite factor, 0 or more.")
        return [_targets(outputs)]

    def emit(self, emit: Emitter, outputs: Values, labels: Values) -> LossTerms:
        x, y = _first(outputs), labels["labels"]
        # (1 - y) x + (1 + (w - 1) y) softplus(-x); with w = 1 that is softplus(x) - x y.
        if self.pos_weight == 1.0:
            return _mean_of_all(emit, emit.op("Sub", emit.op("Softplus", x), emit.op("Mul", x, y)))
        one = emit.scalar(1.0, like=x)
        negative = emit.op("Mul", emit.op("Sub", one, y), x)
        factor = emit.op("Add", one, emit.op("Mul", emit.scalar(self.pos_weight - 1.0, like=x), y))
        positive = emit.op("Mul", factor, emit.op("Softplus", emit.op("Neg", x)))
        return _mean_of_all(emit, emit.op("Add", negative, positive))

    def describe(self) -> dict[str, Any]:
        return {"kind": "bce_with_logits", **asdict(self)}


_BY_NAME: dict[str, type[Loss]] = {
    "cross_entropy": CrossEntropy,
    "causal_lm": CausalLM,
    "mse": MSE,
    "l1": L1,
    "bce_with_logits": BCEWithLogits,
}


def by_name(name: str) -> Loss:
    """The loss of that name with its default settings."""
    if name not in _BY_NAME:
        raise LossError(
            "unknown-loss",
            f"There is no loss named {name!r}.",
            context=f"there are: {', '.join(_BY_NAME)}",
            hint="choose one of them, or give a function or an ONNX model.",
        )
    return _BY_NAME[name]()


def _cross_entropy(emit: Emitter, logits: ir.Value, target: ir.Value, settings: CrossEntropy) -> LossTerms:
    """``logits`` [rows, classes], ``target`` [rows]."""
    log_p = emit.op("LogSoftmax", logits, axis=1)
    counts = emit.op("Not", emit.op("Equal", target, emit.scalar(settings.ignore_index, like=target)))
    safe = emit.op("Where", counts, target, emit.scalar(0, like=target))
    picked = emit.op("GatherElements", log_p, emit.op("Unsqueeze", safe, emit.ints(1)), axis=1)
    counted = emit.op("Cast", counts, to=_enum(logits))
    class_weights = _class_weights(emit, settings)
    weight = emit.op("Mul", counted, emit.op("Gather", class_weights, safe)) if class_weights is not None else counted
    total = _weighted(emit, emit.op("Squeeze", picked, emit.ints(1)), weight)
    if settings.label_smoothing:
        spread = emit.op("Mul", log_p, class_weights) if class_weights is not None else log_p
        smooth = _weighted(emit, emit.op("ReduceSum", spread, emit.ints(1), keepdims=0), counted)
        # The mean over the classes, so that a share of 1 would be the uniform distribution.
        share = emit.op("Div", emit.scalar(settings.label_smoothing, like=logits), _columns(emit, logits))
        kept = emit.op("Mul", total, emit.scalar(1.0 - settings.label_smoothing, like=logits))
        total = emit.op("Add", kept, emit.op("Mul", smooth, share))
    return LossTerms(total, emit.op("ReduceSum", weight, keepdims=0))


def _weighted(emit: Emitter, log_p: ir.Value, weight: ir.Value) -> ir.Value:
    return emit.op("Neg", emit.op("ReduceSum", emit.op("Mul", log_p, weight), keepdims=0))


def _columns(emit: Emitter, logits: ir.Value) -> ir.Value:
    size = emit.op("Shape", logits, start=1, end=2)
    return emit.op("Squeeze", emit.op("Cast", size, to=_enum(logits)))


def _class_weights(emit: Emitter, settings: CrossEntropy) -> ir.Value | None:
    if settings.class_weights is None:
        return None
    return emit.constant(np.asarray(settings.class_weights, dtype=np.float32))


def _rows(emit: Emitter, logits: ir.Value, target: ir.Value, class_axis: int) -> tuple[ir.Value, ir.Value]:
    """Bring logits to [rows, classes] and labels to [rows]."""
    size = rank(logits)
    axis = class_axis % size
    classes = _known(logits, axis)
    if size == 2 and axis == 1:
        return logits, target
    if axis != size - 1:
        order = [i for i in range(size) if i != axis] + [axis]
        logits = emit.op("Transpose", logits, perm=order)
    return emit.op("Reshape", logits, emit.ints(-1, classes)), emit.op("Reshape", target, emit.ints(-1))


def _mean_of_all(emit: Emitter, values: ir.Value) -> LossTerms:
    weight = emit.op("Cast", emit.op("Size", values), to=_enum(values))
    return LossTerms(emit.op("ReduceSum", values, keepdims=0), weight)


def _targets(outputs: Values) -> Labels:
    return Labels("labels", ir.DataType.FLOAT, tuple(dims_of(_first(outputs))))


def _first(outputs: Values) -> ir.Value:
    return next(iter(outputs.values()))


def _known(value: ir.Value, axis: int) -> int:
    dim = dims_of(value)[axis]
    assert isinstance(dim, int)  # labels() has refused anything else
    return dim


def _enum(like: ir.Value) -> int:
    assert like.dtype is not None
    return int(like.dtype)


def _check_share(name: str, share: float) -> None:
    if not 0.0 <= share < 1.0:
        raise _out_of_range(name, share, f"choose 0 <= {name} < 1.")


def _check_class_weights(weights: Sequence[float], classes: Dim) -> None:
    if len(weights) != classes:
        raise LossError(
            "class-weights",
            f"{len(weights)} class weights for {classes} classes.",
            context=None,
            hint="give one weight per class.",
        )
    if not all(0.0 <= weight < np.inf for weight in weights) or not any(weights):
        raise _out_of_range("class_weights", weights, "choose finite weights, 0 or more, and not all of them 0.")


def _out_of_range(name: str, value: object, hint: str) -> LossError:
    return LossError("loss-setting", f"{name} = {value} is out of range.", context=None, hint=hint)


def _text(dims: Sequence[Dim]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in dims) + "]"
