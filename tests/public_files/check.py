"""Prepare a file, check its gradients by finite differences, train it, merge it, and compare the merged file."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import edgepeft
from edgepeft.preparation.options import Interface
from edgepeft_export import optimizers
from edgepeft_runtime import Trainer
from edgepeft_runtime.errors import EdgepeftError, TrainingError
from tests.public_files.catalog import PublicFile
from tests.public_files.double import DoubleGraph
from tests.public_files.losses import LOSSES

Array = NDArray[np.generic]
Parameters = Mapping[str, NDArray[np.float64]]

RIGHT, REFUSED, WRONG = "right", "refused", "wrong"

STEPS = 25
RATES = (1e-2, 1e-3, 0.1)
"""Learning rates of AdamW, of which the first is taken that lowers the loss."""

FALLEN = 0.9
"""The loss has to fall to less than this part of its first value."""

SIZES = (1e-6, 1e-7, 1e-5, 1e-8)
"""Lengths of a finite step in parts of the parameters' norm, in double precision. Kinks need small ones."""

AGREES = 1e-2
"""A relative difference that ends the search for a step length."""

TOLERANCE = 5e-2
"""Largest difference between a derivative and its finite difference, in parts of the larger one."""

NOISE = 1e-4
"""Derivatives below this part of the gradient's norm are rounding errors of float32."""


@dataclass(frozen=True)
class Outcome:
    """The result of one file.

    Attributes:
        status: right, refused or wrong.
        note: why it is not right.
        trained: number of elements that trained.
        worst: largest relative difference between a derivative and a finite difference.
        first, last: the loss before and after training.
    """

    status: str
    note: str = ""
    trained: int = 0
    worst: float = 0.0
    first: float = 0.0
    last: float = 0.0


def check(file: PublicFile, path: Path) -> Outcome:
    """Check one file. A file that edgepeft refuses is refused by ``doctor`` too, or it is wrong."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            prepared = _prepare(file, path, Path(folder))
        except EdgepeftError as error:
            return _refused(file, path, error)
        return _trained(file, path, Path(folder), prepared.trainable)


def _settings(file: PublicFile) -> dict[str, object]:
    interface = Interface(outputs=file.outputs) if file.outputs else None
    return {"method": "lora", "loss": file.loss, "interface": interface}


def _prepare(file: PublicFile, path: Path, folder: Path) -> edgepeft.Prepared:
    optimizer = optimizers.AdamW(weight_decay=0.0)
    return edgepeft.prepare(path, file.example(), optimizer=optimizer, out=folder / "bundle", **_settings(file))


def _refused(file: PublicFile, path: Path, error: EdgepeftError) -> Outcome:
    note = f"`{error.code}`: {error.message} {error.hint or ''}".strip()
    try:
        missing = edgepeft.doctor(path, file.example(), **_settings(file)).missing_rules
    except EdgepeftError as other:
        return Outcome(REFUSED if other.code == error.code else WRONG, note)
    return Outcome(REFUSED if missing else WRONG, note if missing else f"{note} (doctor finds nothing)")


def _trained(file: PublicFile, path: Path, folder: Path, trained: int) -> Outcome:
    worst = _gradients(file, folder / "bundle")
    if worst > TOLERANCE:
        return Outcome(WRONG, "a derivative differs from its finite difference", trained, worst)
    batch = _batch(file, folder / "bundle")
    losses, after = _descended(folder / "bundle", batch, folder / "update.safetensors")
    merged = edgepeft.merge(folder / "bundle", folder / "update.safetensors", to="onnx", out=folder / "merged.onnx")
    off = _difference(merged, path, file, after)
    note = ""
    if not losses[-1] < FALLEN * losses[0]:
        note = "the loss does not fall"
    elif off > 1e-3:
        note = f"the merged file differs by {off:.1e} of the largest value"
    return Outcome(WRONG if note else RIGHT, note, trained, worst, losses[0], losses[-1])


def _descended(bundle: Path, batch: dict[str, Array], update: Path) -> tuple[list[float], dict[str, Array]]:
    """Train on one batch, and write the update. Return the losses, and the outputs afterwards."""
    for rate in RATES:
        with Trainer.open(bundle) as trainer:
            given = {spec.name: batch[spec.name] for spec in trainer.bundle.manifest.inputs}
            try:
                losses = [trainer.step(batch, lr=rate) for _ in range(STEPS)]
            except TrainingError:
                continue  # it diverged
            after = trainer.predict(given)
            trainer.save_update(update)
        if losses[-1] < FALLEN * losses[0]:
            break
    return losses, after


def _gradient(bundle: Path, batch: dict[str, Array], start: Parameters) -> Parameters:
    """The gradient: AdamW's first moment after one step from zero, without the factor that the gradient has in it."""
    single = {key: value.astype(np.float32) for key, value in start.items()}
    with Trainer.open(bundle, adapter=single) as trainer:
        trainer.step(batch, lr=0.0)
        _, moments = trainer.session.finite_arrays()
        buckets = trainer.bundle.manifest.buckets
    weight = 1.0 - optimizers.AdamW().betas[0]
    gradient = {}
    for number, bucket in enumerate(buckets):
        ends = np.cumsum([start[name].size for name in bucket.members])[:-1]
        flat = moments[f"exp_avg.{number}"].astype(np.float64) / weight
        gradient |= {
            name: part.reshape(start[name].shape)
            for name, part in zip(bucket.members, np.split(flat, ends), strict=True)
        }
    return gradient


def _difference(merged: Path, path: Path, file: PublicFile, after: Mapping[str, Array]) -> float:
    """The largest relative difference of an output; infinite where the outputs are not those of the file."""
    session, source = (
        onnxruntime.InferenceSession(each, providers=["CPUExecutionProvider"]) for each in (merged, path)
    )
    names = [value.name for value in session.get_outputs()]
    if not {value.name for value in source.get_outputs()} <= set(names):
        return np.inf
    typed = {value.name: file.example()[value.name] for value in session.get_inputs()}
    found = dict(zip(names, session.run(None, typed), strict=True))
    return max(_relative(found[name], array) for name, array in after.items() if name in found)


def _relative(a: Array, b: Array) -> float:
    return float(
        np.abs(a.astype(np.float64) - b).max(initial=0.0) / max(np.abs(b.astype(np.float64)).max(initial=0.0), 1e-6)
    )


def _batch(file: PublicFile, bundle: Path) -> dict[str, Array]:
    """The example, with labels that can be learned: those that another adapter of the file comes closer to."""
    with Trainer.open(bundle) as trainer:
        manifest = trainer.bundle.manifest
        read = {spec.name: file.example()[spec.name] for spec in manifest.inputs}  # numbers may be fixed
        before = trainer.predict(read)[manifest.outputs[0].name]
        other = _moved(trainer.parameters(), 1.0, seed=1)
    with Trainer.open(bundle, adapter={key: value.astype(np.float32) for key, value in other.items()}) as trainer:
        after = trainer.predict(read)[manifest.outputs[0].name]
    labels = {
        "mse": lambda: after,
        "bce_with_logits": lambda: (after > before).astype(np.float32),
        "cross_entropy": lambda: (after - before).argmax(-1),
    }
    return {**read, manifest.labels[0].name: labels[file.loss]()}


def _gradients(file: PublicFile, bundle: Path) -> float:
    """The largest relative difference of a directional derivative.

    The derivatives are along parts of the gradient, each parameter's by itself and random halves of all, where they
    are largest, and along random directions, where a gradient that lacks a part shows.
    """
    batch = _batch(file, bundle)
    with Trainer.open(bundle) as trainer:
        name, label = trainer.bundle.manifest.outputs[0].name, trainer.bundle.manifest.labels[0].name
        start = _moved(trainer.parameters(), 0.3, seed=0)
    gradient = _gradient(bundle, batch, start)
    graph = DoubleGraph(bundle / "infer.onnx")

    def loss(parameters: Parameters) -> float:
        return LOSSES[file.loss](graph.outputs({**batch, **parameters})[name].astype(np.float64), batch[label])

    found = [_off(loss, start, gradient, direction) for direction in _directions(gradient, start)]
    return max((off for off in found if off is not None), default=np.inf)


def _moved(parameters: Mapping[str, Array], size: float, *, seed: int) -> Parameters:
    """The parameters with noise, because pairs of LoRA start where half of the gradient is 0."""
    draw = np.random.default_rng(seed)
    usual = {key: max(float(np.abs(value).mean()), 0.02) for key, value in parameters.items()}
    noisy = {key: value + size * usual[key] * draw.normal(size=value.shape) for key, value in parameters.items()}
    return {key: value.astype(np.float32).astype(np.float64) for key, value in noisy.items()}


def _directions(gradient: Parameters, start: Parameters) -> Iterator[Parameters]:
    draw = np.random.default_rng(2)
    names = sorted(gradient, key=lambda name: -np.linalg.norm(gradient[name]))
    for name in dict.fromkeys([*names[:3], names[len(names) // 2], names[-1]]):
        yield {name: gradient[name]}
    for _ in range(2):
        yield {key: value * draw.integers(0, 2, value.shape) for key, value in gradient.items()}
    for _ in range(2):
        yield {
            key: draw.normal(size=value.shape) * (np.abs(start[key]).mean() + 1e-3) for key, value in gradient.items()
        }


def _norm(values: Parameters) -> float:
    return float(np.sqrt(sum(np.sum(value**2) for value in values.values())))


def _off(
    loss: Callable[[Parameters], float], start: Parameters, gradient: Parameters, direction: Parameters
) -> float | None:
    """The relative difference along a direction, by the step that fits best.

    ``None`` where the derivative is below rounding errors of float32, and where no two steps have the same result.
    """
    length = _norm(direction)
    if length == 0.0:
        return None
    unit = {key: value / length for key, value in direction.items()}
    expected = sum(float(np.sum(gradient[key] * value)) for key, value in unit.items())
    usual = _norm({key: gradient[key] * value for key, value in unit.items()})  # of random directions
    largest = max(abs(expected), usual)
    if largest < NOISE * _norm(gradient):
        return None
    scale = _norm({key: start[key] for key in unit})
    found = dict[float, float]()
    for size in SIZES:
        step = size * scale
        high, low = (
            loss({**start, **{key: start[key] + sign * step * value for key, value in unit.items()}})
            for sign in (1, -1)
        )
        found[size] = (high - low) / (2 * step) / largest
        if abs(found[size] - expected / largest) < AGREES:
            break
    best = min(abs(value - expected / largest) for value in found.values())
    return best if best <= TOLERANCE or _converged(found) else None


def _converged(found: Mapping[float, float]) -> bool:
    """Whether finite differences of two neighbouring lengths agree; otherwise they say nothing about a derivative."""
    ordered = [found[size] for size in sorted(found)]
    return any(abs(a - b) < TOLERANCE for a, b in pairwise(ordered))
