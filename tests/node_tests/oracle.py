"""Check gradients against finite differences."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from edgepeft_runtime.errors import EdgepeftError
from tests.node_tests.backward import WAYS, Gradients, Way
from tests.node_tests.cases import FLOATS, Array, NodeTest
from tests.node_tests.functions import Function, function_of, in_double

RIGHT, REFUSED, WRONG, CRASH = "right", "refused", "wrong", "crash"


_HUGE = 1e30


@dataclass(frozen=True)
class Result:
    """What came of one way to the gradient of a node test.

    Attributes:
        status: right, refused, wrong or crash.
        code: of the error that refuses it.
        detail: what the error says; where it is wrong, the input and both derivatives.
    """

    status: str
    code: str = ""
    detail: str = ""


@dataclass
class Point:
    """A node test at one set of inputs, and a random weight for each element of its float outputs."""

    test: NodeTest
    function: Function
    weights: Mapping[int, Array]

    @cached_property
    def derivatives(self) -> dict[str, list[tuple[Array, float]]]:
        """For each float input, directions and how fast the weighted sum of the outputs grows along them."""
        found: dict[str, list[tuple[Array, float]]] = {name: [] for name in self.test.targets}
        for name, known in found.items():
            for direction in _directions(self.test.feeds[name], self.function.costly):
                derivative = _derivative(self, name, direction)
                if derivative is not None:
                    known.append((direction, derivative))
        return found

    @cached_property
    def is_blind(self) -> bool:
        """Whether differences along a float input say nothing: one step further, for example, the shape is another."""
        return any(not known and self.test.feeds[name].size for name, known in self.derivatives.items())


def check(test: NodeTest) -> dict[str, Result]:
    """The result of every way to the gradient.

    At the suite's inputs and, where the two sides differ there or differences say nothing, at some nearby: they may lie
    on a kink, a tie or an edge.
    """
    nearby = cache(lambda seed: _point(jittered(test, seed)))
    here = _point(test)
    results = {}
    for name, way in WAYS.items():
        results[name] = _check(here, way)
        for seed in (1, 2):
            if results[name].status == WRONG or (results[name].status == RIGHT and here.is_blind):
                results[name] = _again(nearby, seed, way) or results[name]
    return results


def _again(nearby: Callable[[int], Point], seed: int, way: Way) -> Result | None:
    """The result at inputs nearby, where there is one."""
    try:
        result = _check(nearby(seed), way)
    except Exception:  # the operator has no value there
        return None
    # A large step in float32 may cross a jump from one side, which proves nothing.
    exact = result.status == WRONG and nearby(seed).function.dtype is np.float64
    return result if result.status == RIGHT or exact else None


def jittered(test: NodeTest, seed: int) -> NodeTest:
    """The test with its float inputs moved a little, which breaks ties."""
    random = np.random.default_rng(seed)
    feeds = dict(test.feeds)
    for name in test.targets:
        array = feeds[name]
        fraction, shift = (random.uniform(-most, most, array.shape) for most in (0.03, 0.01))
        feeds[name] = np.asarray(array * (1 + fraction) + shift, array.dtype)
    return replace(test, feeds=feeds)


def _point(test: NodeTest) -> Point:
    function = function_of(test)
    return Point(test, function, _weights(test, function))


def _check(point: Point, way: Way) -> Result:
    try:
        gradients = way(point.test, point.weights)
    except EdgepeftError as error:
        return Result(REFUSED, error.code, _reason(error))
    except Exception as error:
        return Result(CRASH, type(error).__name__, str(error)[:300])
    return next(_differences(point, gradients), Result(RIGHT))


def _reason(error: EdgepeftError) -> str:
    """Summarise the error, without names of nodes and files."""
    if error.code == "no-gradient-rule":
        return "no rule for " + ", ".join(sorted(set(re.findall(r"Op (\S+) \(node", str(error.context)))))
    if error.code == "no-gradient-for-case":
        return error.message.partition("has no gradient here: ")[2].rstrip(".")
    if error.code == "unknown-initializer":
        return "its floats are not float32"
    return re.sub(r"\S*model\.onnx has ", "", error.message).rstrip(".")


def verdict(results: Mapping[str, Result]) -> Result:
    """The worst failure, else correct if any way computes the gradient, else the first refusal."""
    order = (CRASH, WRONG, RIGHT, REFUSED)
    return min(results.values(), key=lambda result: order.index(result.status))


def _weights(test: NodeTest, function: Function) -> dict[int, Array]:
    """A random weight of either sign for each element of the float outputs, 0 where that is NaN or infinite.

    A masked score of -3e38 counts as infinite: it would hide the differences of all others.
    """
    random = np.random.default_rng(zlib.crc32(test.name.encode()))
    outputs = function.outputs(in_double(test.feeds) if function.dtype is np.float64 else test.feeds)
    return {
        at: random.uniform(0.5, 1.5, made.shape) * random.choice((-1.0, 1.0), made.shape) * (np.abs(made) < _HUGE)
        for at, made in enumerate(outputs)
        if isinstance(made, np.ndarray) and made.dtype.type in FLOATS
    }


def _differences(point: Point, gradients: Gradients) -> Iterator[Result]:
    """What disagrees, input by input."""
    fraction, floor = _tolerance(point)
    for name, found in gradients.items():
        shape = point.test.feeds[name].shape
        gradient = np.zeros(shape) if found is None else found
        if gradient.shape != shape:
            yield Result(WRONG, detail=f"{name}: the gradient has shape {gradient.shape}, not {shape}")
            continue
        for direction, derivative in point.derivatives[name]:
            have, scale = float((gradient * direction).sum()), float(np.abs(gradient * direction).sum())
            if not abs(have - derivative) <= fraction * scale + floor:
                yield Result(WRONG, detail=f"{name}: {have:.6g} for a derivative of {derivative:.6g}")


def _tolerance(point: Point) -> tuple[float, float]:
    """The tolerance, relative to the gradient and absolute, for rounding in the model's type."""
    if any(array.dtype == np.float16 for array in point.test.feeds.values()):
        return 5e-2, 5e-2
    return (2e-3, 2e-4) if point.function.dtype is np.float64 else (2e-2, 5e-3)


def _directions(here: Array, costly: bool) -> Iterator[Array]:
    """Single elements, and all elements at once in either direction."""
    random = np.random.default_rng(here.size)
    singles, whole = (6, 2) if costly else (12, 3)
    for at in random.permutation(here.size)[:singles]:
        direction = np.zeros(here.size)
        direction[at] = 1.0
        yield direction.reshape(here.shape)
    for _ in range(whole if here.size > 1 else 0):
        yield random.choice((-1.0, 1.0), here.shape)


def _derivative(point: Point, name: str, direction: Array) -> float | None:
    """The central difference of the loss along ``direction``; ``None`` where the loss has no value, or another shape.

    In float64 with a small step; else with two large ones, from which the error of third order is taken out.
    """
    if point.function.dtype is np.float64:
        return _central(point, name, direction, 1e-6)
    step = 5e-2 if point.function.dtype is np.float16 else 1e-2
    sides = [_central(point, name, direction, size) for size in (step, step / 2)]
    return None if sides[0] is None or sides[1] is None else (4 * sides[1] - sides[0]) / 3


def _central(point: Point, name: str, direction: Array, step: float) -> float | None:
    try:
        ahead, back = (_loss(point, name, direction * sign * step) for sign in (1, -1))
    except Exception:  # a size, say, that must be whole
        return None
    if ahead is None or back is None:
        return None
    derivative = (ahead - back) / (2 * step)
    return derivative if np.isfinite(derivative) else None


def _loss(point: Point, name: str, change: Array) -> float | None:
    feeds = dict(point.test.feeds)
    if point.function.dtype is np.float64:
        feeds = in_double(feeds)
    feeds[name] = np.asarray(feeds[name] + change, feeds[name].dtype)
    outputs = point.function.outputs(feeds)
    if any(outputs[at].shape != weight.shape for at, weight in point.weights.items()):
        return None
    return sum(
        float((outputs[at].astype(np.float64) * weight).sum(where=weight != 0)) for at, weight in point.weights.items()
    )
