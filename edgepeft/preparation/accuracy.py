"""Measure how far a quantized model is from the fp32 one, and refuse what loses too much.

Both graphs run on the same inputs, so the difference is due to rounding alone and few inputs suffice. No labels are
needed: a language model is compared by ``exp(KL(fp32 ‖ quantized))``, which is the factor of its perplexity on text
that follows the fp32 model. Of a classifier, the classes with the highest scores are compared. A head that is new has
random weights, so its classes mean nothing: its scores are random projections of the features, and their relative
error is that of the features on average.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgepeft.preparation.errors import AccuracyLost
from edgepeft_export.forward import Forward
from edgepeft_export.losses import Loss
from edgepeft_export.quantize.choose import Batch, complete
from edgepeft_export.verification import FLOAT32, GraphRun

PERPLEXITY = 1.10
"""A language model may lose 10 % of its perplexity."""

GENERATED = 1.5
"""The same on generated tokens, which overestimate it: rounding rows of SmolLM2-135M cost 1.10 x on docstrings and
1.18 x on random tokens, and one scale per tensor 1.91 x and 2.06 x."""

AGREEMENT = 0.95
"""A classifier may choose another class for 5 % of the examples: it is refused where the sample shows that it does."""

CONFIDENCE = 2.33
"""Standard deviations of a one-sided 99 % bound. Of 34 examples that a model of 95 % agreement gets, 4 differ by chance
once in ten times, and no model is refused for that."""

TIE = 0.1
"""Classes whose fp32 scores differ by less than this, in standard deviations of the scores, count as equal: which of
them has the higher score is chance."""

FEATURES = 0.5
"""The features of a model with a new head may differ by half of their size: MiniLM's differ by 0.14 in int8, and those
of a model that rounding has ruined by 0.9."""

_DRAWS = 14
"""Further inputs of a model without calibration data: the example's, permuted. A language model has enough tokens."""

_ROWS = 64
"""Rows of scores that are compared at once."""

Array = NDArray[np.generic]
Floats = NDArray[np.float64]
Kind = Literal["perplexity", "agreement", "features", "error"]


@dataclass(frozen=True)
class Accuracy:
    """How far a quantized model is from the fp32 one.

    Attributes:
        kind: ``perplexity``: a factor; ``agreement``: fraction of equal classes; ``features``: relative L2 error of the
            scores of a new head; ``error``: that of the outputs.
        value: The measured value.
        rows: Number of tokens or examples.
        calibrated: Whether calibration data was used, not generated inputs.
    """

    kind: Kind
    value: float
    rows: int
    calibrated: bool

    @property
    def limit(self) -> float:
        """The largest tolerable factor or error, or the smallest tolerable fraction."""
        if self.kind == "perplexity":
            return PERPLEXITY if self.calibrated else GENERATED
        return FEATURES if self.kind == "features" else AGREEMENT

    @property
    def tolerable(self) -> bool:
        """Whether the loss is small enough. There is no limit for the relative error of outputs."""
        if self.kind in ("perplexity", "features"):
            return self.value <= self.limit
        return self.kind == "error" or _upper_bound(self.value, self.rows) >= self.limit

    def __str__(self) -> str:
        """Return the result as one line."""
        data = "calibration data" if self.calibrated else "generated inputs"
        if self.kind == "perplexity":
            return f"the perplexity is {self.value:.3f} x that of fp32 ({self.rows} tokens of {data})"
        if self.kind == "agreement":
            return f"{self.value:.1%} of the predicted classes are those of fp32 ({self.rows} of {data})"
        what = "the scores of the new head" if self.kind == "features" else "the outputs"
        return f"{what} differ from fp32 by {self.value:.2%} ({data})"


def measure(
    forward: Forward,
    quantized: Forward,
    loss: Loss,
    calibration: Sequence[Batch] | None,
    *,
    new_head: bool = False,
) -> Accuracy | None:
    """Compare the first outputs of both graphs; ``None`` if there is nothing that the model runs on.

    Args:
        forward: The fp32 graph, with the examples on which it was compared with its source.
        quantized: The same, quantized.
        loss: Decides what is compared.
        calibration: A few batches of the user's data.
        new_head: Whether the weights of the head are random.
    """
    kind: Kind = "perplexity" if loss.predicts_tokens else "agreement" if loss.name == "cross_entropy" else "error"
    if kind == "agreement" and new_head:
        kind = "features"
    batches = calibration or list(_generated(forward, 0 if kind == "perplexity" else _DRAWS))
    if not batches:
        return None
    fed = [complete(forward, batch) for batch in batches]
    known = _known_scores(forward) if calibration is None else []
    exact, rounded = [*known, *_scores(forward, fed[len(known) :])], _scores(quantized, fed)
    axis = int(getattr(loss, "class_axis", -1))
    pairs = [_rows(a, b, batch, axis) for a, b, batch in zip(exact, rounded, fed, strict=True)]
    rows = sum(len(a) for a, _ in pairs)
    if kind == "perplexity":
        value = float(np.exp(sum(map(_divergence, pairs)) / rows))
    elif kind == "agreement" and pairs[0][0].shape[-1] > 1:
        value = _agreement(*(np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True)))
    else:
        kind, value = kind if kind == "features" else "error", _error(pairs)
    return Accuracy(kind, value, rows, calibration is not None)


def check(accuracy: Accuracy, compute: str) -> None:
    """Refuse a quantized model that lost too much.

    Raises:
        AccuracyLost: It did.
    """
    if not accuracy.tolerable:
        wider = "int8 instead of int4, " if compute == "int4" else ""
        raise AccuracyLost(
            f"Quantization to {compute} loses too much accuracy: {accuracy}.",
            context=f"the limit is {accuracy.limit:g}",
            hint=f"use {wider}calibration data (--calibrate), by which sensitive weights stay fp32, or --keep-fp32; "
            "--allow-accuracy-loss accepts the loss.",
        )


def _generated(forward: Forward, draws: int) -> Iterator[Batch]:
    """The inputs of the verification, and the first of them again with permuted elements. Masks stay."""
    examples = [example.inputs for example in forward.verified.examples]
    yield from examples
    draw = np.random.default_rng(0)
    for _ in range(draws if examples else 0):
        yield {name: _permuted(array, draw) for name, array in examples[0].items()}


def _known_scores(forward: Forward) -> list[Array]:
    """The first output for the inputs of the verification: what the source computed in float32, and so the graph."""
    verified, first = forward.verified, forward.outputs[0]
    if verified.tolerance > FLOAT32 or any(first not in example.outputs for example in verified.examples):
        return []
    return [example.outputs[first] for example in verified.examples]


def _scores(forward: Forward, batches: Sequence[Batch]) -> list[Array]:
    """The first output for each batch."""
    if not batches:
        return []
    run = GraphRun(forward.model)
    return [run(batch)[forward.outputs[0]] for batch in batches]


def _permuted(array: Array, draw: np.random.Generator) -> Array:
    if array.dtype == np.bool_ or bool(np.isin(array, (0, 1)).all()):
        return array
    return draw.permutation(array.ravel()).reshape(array.shape)


def _rows(exact: Array, rounded: Array, batch: Mapping[str, Array], axis: int) -> tuple[Array, Array]:
    """Rows of scores of both models, without padding."""
    exact, rounded = (np.moveaxis(array, axis, -1) if array.ndim else array.reshape(1) for array in (exact, rounded))
    counts = np.ones(exact.shape[:-1], bool)
    for name, mask in batch.items():
        if "mask" in name and mask.shape == counts.shape:
            counts &= mask != 0
    return exact[counts], rounded[counts]


def _divergence(pair: tuple[Array, Array]) -> float:
    """The sum of KL(exact ‖ rounded) over rows, in nats."""
    total = 0.0
    for start in range(0, len(pair[0]), _ROWS):
        exact, rounded = (_log_softmax(side[start : start + _ROWS].astype(np.float64)) for side in pair)
        total += float((np.exp(exact) * (exact - rounded)).sum())
    return total


def _log_softmax(scores: Floats) -> Floats:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _agreement(exact: Floats, rounded: Floats) -> float:
    """The fraction of rows whose class in ``rounded`` has, in ``exact``, the highest score or one that ties with it."""
    spread = float(np.sqrt(np.square(exact - exact.mean(axis=-1, keepdims=True)).mean()))
    chosen = np.take_along_axis(exact, rounded.argmax(axis=-1)[:, None], axis=-1)[:, 0]
    return float(np.mean(exact.max(axis=-1) - chosen <= TIE * spread))


def _upper_bound(fraction: float, rows: int) -> float:
    """The largest fraction that a sample of so many rows is likely to come from: Wilson's bound (1927)."""
    spread = CONFIDENCE**2 / rows
    middle = fraction + spread / 2
    deviation = CONFIDENCE * math.sqrt((fraction * (1 - fraction) + spread / 4) / rows)
    return (middle + deviation) / (1 + spread)


def _error(pairs: Sequence[tuple[Array, Array]]) -> float:
    exact, rounded = (np.concatenate([pair[side].astype(np.float64).ravel() for pair in pairs]) for side in (0, 1))
    size = float(np.linalg.norm(exact))
    return float(np.linalg.norm(exact - rounded)) / (size or 1.0)
