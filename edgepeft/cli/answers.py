"""Convert a model's outputs to readable JSON objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.files.tensorfile import Array

Answer = dict[str, object]


def answers(outputs: Mapping[str, Array], manifest: Manifest) -> Iterator[Answer]:
    """Yield one JSON object per example.

    A classifier (cross-entropy over ``[batch, classes]``, or a loss of its kind) has ``label``, ``probability`` and
    ``probabilities``. A multi-label classifier (``bce_with_logits`` or ``binary_focal`` over ``[batch, classes]``) has
    ``labels`` and ``probabilities``. Any other model has its outputs by name.
    """
    logits = outputs[manifest.outputs[0].name]
    if logits.ndim == 2 and manifest.loss.kind in ("cross_entropy", "focal", "soft_cross_entropy", "kl_divergence"):
        names = _names(manifest, logits.shape[1])
        return (_one_label(row, names) for row in _softmax(logits))
    if logits.ndim == 2 and manifest.loss.kind in ("bce_with_logits", "binary_focal"):
        names = _names(manifest, logits.shape[1])
        return (_several_labels(row, names) for row in _sigmoid(logits))
    return ({name: array[row].tolist() for name, array in outputs.items()} for row in range(len(logits)))


def _names(manifest: Manifest, count: int) -> list[str]:
    return list(manifest.classes) if manifest.classes is not None else list(map(str, range(count)))


def _one_label(row: Array, names: list[str]) -> Answer:
    best = int(row.argmax())
    return {"label": names[best], "probability": _rounded(row[best]), "probabilities": _by_name(row, names)}


def _several_labels(row: Array, names: list[str]) -> Answer:
    likely = [name for name, value in zip(names, row, strict=True) if value > 0.5]
    return {"labels": likely, "probabilities": _by_name(row, names)}


def _by_name(row: Array, names: list[str]) -> dict[str, float]:
    return {name: _rounded(value) for name, value in zip(names, row, strict=True)}


def _rounded(value: float) -> float:
    return round(float(value), 6)


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _sigmoid(logits: Array) -> Array:
    # By tanh, which does not overflow.
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))
