"""Reductions along axes, and normalizations."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor
from torch.nn import functional

from tests.autodiff.rule_cases.case import Case, Constant, Function, Given, ints, x

Axes = tuple[int, ...]

EMPTY = Constant(np.zeros(0, dtype=np.int64))
TIES = Given(np.array([[1.0, 2.0, 2.0], [0.5, -1.0, 0.5], [3.0, 1.0, 0.0]]))
ZEROS = Given(np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 3.0], [1.0, 2.0, 4.0]]))


def summed(a: Tensor, axes: Axes, keep: bool) -> Tensor:
    return a.sum(axes, keepdim=keep)


REDUCTIONS: dict[str, tuple[Function, float]] = {
    "ReduceSum": (summed, -2.0),
    "ReduceMean": (lambda a, axes, keep: a.mean(axes, keepdim=keep), -2.0),
    "ReduceMax": (lambda a, axes, keep: a.amax(axes, keepdim=keep), -2.0),
    "ReduceMin": (lambda a, axes, keep: a.amin(axes, keepdim=keep), -2.0),
    "ReduceL1": (lambda a, axes, keep: a.abs().sum(axes, keepdim=keep), -2.0),
    "ReduceL2": (lambda a, axes, keep: a.square().sum(axes, keepdim=keep).sqrt(), -2.0),
    "ReduceSumSquare": (lambda a, axes, keep: a.square().sum(axes, keepdim=keep), -2.0),
    "ReduceLogSum": (lambda a, axes, keep: a.sum(axes, keepdim=keep).log(), 0.5),
    "ReduceLogSumExp": (lambda a, axes, keep: a.logsumexp(axes, keepdim=keep), -2.0),
    "ReduceProd": (lambda a, axes, keep: product(a, axes, keep), -2.0),
}


def product(a: Tensor, axes: Axes, keep: bool) -> Tensor:
    for axis in sorted((axis % a.ndim for axis in axes), reverse=True):
        a = a.prod(axis, keepdim=keep)
    return a


def reductions() -> Iterator[Case]:
    """Every reduction: axes as input and as attribute, kept and dropped, negative, several, none; known and not."""
    for op, (function, low) in REDUCTIONS.items():
        for axes, keep in (((1,), 1), ((-1,), 0), ((0, 2), 0), ((-1, 0), 1)):
            apply = lambda a, *_, f=function, axes=axes, keep=keep: f(a, axes, bool(keep))  # noqa: E731
            yield Case(op, [x(2, 3, 4, low=low), ints(*axes)], apply, {"keepdims": keep})
        whole = lambda a, *_, f=function: f(a, (0, 1), False)  # noqa: E731
        yield Case(op, [x(2, 3, low=low)], whole, {"keepdims": 0})
        yield Case(op, [x(2, 3, low=low), EMPTY], lambda a, _, f=function: f(a, (0, 1), True))
        at_run_time = lambda a, _, f=function: f(a, (1,), False)  # noqa: E731
        yield Case(op, [x(2, 3, low=low), np.array([1])], at_run_time, {"keepdims": 0}, fixed=(1,))
        if op not in ("ReduceSum", "ReduceProd"):
            by_attribute = lambda a, f=function: f(a, (1,), False)  # noqa: E731
            yield Case(op, [x(2, 3, low=low)], by_attribute, {"axes": [-1], "keepdims": 0}, 17)
        yield Case(op, [x(2, 1, low=low), ints(1)], lambda a, _, f=function: f(a, (1,), True))


def layer_norm(axis: int) -> Function:
    return lambda a, s, b=None: functional.layer_norm(a, a.shape[axis:], s, b, 1e-5)


def with_statistics(axis: int) -> Function:
    def apply(a: Tensor, scale: Tensor, bias: Tensor | None = None) -> list[Tensor]:
        axes = tuple(range(axis, 0))
        inverse = (a.var(axes, correction=0, keepdim=True) + 1e-5).rsqrt()
        made = [layer_norm(axis)(a, scale, bias), a.mean(axes, keepdim=True), inverse]
        return made if bias is not None else made[:2]

    return apply


def group_norm(a: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    repeats = a.shape[1] // scale.shape[0]
    return functional.group_norm(a, 2, scale.repeat_interleave(repeats), bias.repeat_interleave(repeats), 1e-5)


def batch_norm(a: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    lined = [value.reshape(-1, *[1] * (a.ndim - 2)) for value in (scale, bias, mean, variance)]
    return (a - lined[2]) / (lined[3] + 1e-3).sqrt() * lined[0] + lined[1]


CASES = [
    *reductions(),
    Case("ReduceSum", [x(2, 3), EMPTY], lambda a, _: a.clone(), {"noop_with_empty_axes": 1}),
    Case("ReduceMean", [x(2, 3), EMPTY], lambda a, _: a.clone(), {"noop_with_empty_axes": 1}),
    Case("ReduceSum", [x(2, 3), np.zeros(0, dtype=np.int64)], lambda a, _: a.sum((0, 1), True), fixed=(1,)),
    Case("ReduceMax", [TIES, ints(1)], lambda a, _: a.amax(1, True), differences=False),
    Case("ReduceMin", [TIES, ints(1)], lambda a, _: a.amin(1, True), differences=False),
    Case("ReduceProd", [ZEROS, ints(1)], lambda a, _: a.prod(1, True)),
    Case("ReduceL2", [ZEROS, ints(0)], lambda a, _: a.norm(dim=0, keepdim=True)),
    Case("ReduceL2", [Given(np.zeros((2, 2))), ints(0)], lambda a, _: a.norm(dim=0, keepdim=True), differences=False),
    Case("CumSum", [x(2, 3), ints(1)], lambda a, _: a.cumsum(1)),
    Case("CumSum", [x(2, 3), ints(-2)], lambda a, _: a.flip(0).cumsum(0).flip(0), {"reverse": 1}),
    Case("CumSum", [x(2, 3), ints(1)], lambda a, _: a.cumsum(1) - a, {"exclusive": 1}),
    Case("LayerNormalization", [x(2, 3, 8), x(8), x(8)], layer_norm(-1)),
    Case("LayerNormalization", [x(2, 3, 8), x(8)], layer_norm(-1)),
    Case("LayerNormalization", [x(2, 3, 4), x(3, 4), x(3, 4)], layer_norm(1), {"axis": 1}),
    Case("LayerNormalization", [x(4, 8), x(8), x(8)], layer_norm(-1), {"axis": -1}, 18),
    Case("LayerNormalization", [x(2, 3, 8), x(8), x(8)], with_statistics(-1), outputs=3),
    Case("LayerNormalization", [x(2, 3, 4), x(3, 4)], with_statistics(-2), {"axis": -2}, outputs=2),
    Case(
        "InstanceNormalization", [x(2, 3, 8), x(3), x(3)], lambda a, s, b: functional.instance_norm(a, None, None, s, b)
    ),
    Case(
        "InstanceNormalization",
        [x(2, 3, 4, 5), x(3), x(3)],
        lambda a, s, b: functional.instance_norm(a, None, None, s, b, eps=1e-2),
        {"epsilon": 1e-2},
    ),
    Case(
        "GroupNormalization", [x(2, 4, 3, 2), x(2), x(2)], group_norm, {"num_groups": 2}, fixed=(1, 2), fixed_axes=(1,)
    ),
    Case(
        "GroupNormalization",
        [x(2, 4, 6), x(4), x(4)],
        group_norm,
        {"num_groups": 2},
        21,
        fixed=(1, 2),
        fixed_axes=(1,),
        float32_only=True,
    ),
    Case("BatchNormalization", [x(2, 3, 4, 5), x(3), x(3), x(3), x(3, low=0.5)], batch_norm, {"epsilon": 1e-3}),
    Case("BatchNormalization", [x(4, 3), x(3), x(3), x(3), x(3, low=0.5)], batch_norm, {"epsilon": 1e-3}),
    Case("LpNormalization", [x(2, 3)], lambda a: functional.normalize(a, dim=-1)),
    Case("LpNormalization", [x(2, 3)], lambda a: functional.normalize(a, p=1, dim=0), {"p": 1, "axis": 0}),
]

TRAINING = {"training_mode": 1}


def nothing(a: Tensor, *_: Tensor) -> Tensor:
    return a.clone()


REFUSED = [
    (Case("BatchNormalization", [x(4, 3), x(3), x(3), x(3), x(3)], nothing, TRAINING, outputs=3), "training mode"),
]
