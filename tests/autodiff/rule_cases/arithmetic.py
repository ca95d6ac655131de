"""Arithmetic on one or several tensors."""

import numpy as np
import torch

from tests.autodiff.rule_cases.case import Case, Constant, Function, Given, ints, x

MASK = np.array([[True, False, True, True], [False, False, True, False], [True, True, False, True]])
ROW = np.array([True, False, False, True])


def number(value: float) -> Constant:
    return Constant(np.array(value, dtype=np.float32))


def three(function: Function) -> Function:
    return lambda a, b, c: function(function(a, b), c)


def crossed(a: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """ONNX's Clip whose lower bound is above the upper one."""
    return high.expand_as(a) + (a + low) * 0


TIED = Given(np.array([[1.0, 2.0, 2.0], [0.0, -3.0, 2.0]]))

CASES = [
    Case("Add", [x(3, 4), x(3, 4)], torch.add),
    Case("Add", [x(3, 4), x(4)], torch.add),
    Case("Add", [x(4), x(2, 3, 4)], torch.add),
    Case("Add", [x(3, 1), x(1, 4)], torch.add),
    Case("Add", [x(), x(2, 3)], torch.add),
    Case("Add", [x(1, 1), x(3)], torch.add),
    Case("Sub", [x(2, 3), x(2, 3)], torch.sub),
    Case("Sub", [x(3), x(2, 1, 3)], torch.sub),
    Case("Mul", [x(2, 3), x(2, 3)], torch.mul),
    Case("Mul", [x(2, 1, 3), x(4, 1)], torch.mul),
    Case("Mul", [x(0, 3), x(3)], torch.mul),
    Case("Div", [x(2, 3), x(2, 3, low=0.5)], torch.div),
    Case("Div", [x(3), x(2, 3, low=0.5)], torch.div),
    Case("Div", [x(2, 3), x(1, low=-2, high=-1)], torch.div),
    Case("Mod", [x(2, 3, low=1, high=5), x(3, low=1.5, high=3)], torch.fmod, {"fmod": 1}),
    Case("Mod", [x(2, 3, low=-5, high=-1), x(3, low=1.5, high=3)], torch.fmod, {"fmod": 1}, differences=False),
    Case("Pow", [x(2, 3), number(2)], torch.pow),
    Case("Pow", [x(2, 3), number(3)], torch.pow),
    Case("Pow", [x(2, 3), number(1)], torch.pow),
    Case("Pow", [x(2, 3), number(4)], torch.pow),
    Case("Pow", [x(2, 3), ints(3)], torch.pow),
    Case("Pow", [x(2, 3, low=0.5), number(0.5)], torch.pow),
    Case("Pow", [x(2, 3, low=0.5), number(-0.5)], torch.pow),
    Case("Pow", [x(2, 3, low=0.5), number(-1)], torch.pow),
    Case("Pow", [x(2, 3, low=0.5), number(1.7)], torch.pow),
    Case("Pow", [x(2, 3), number(0)], torch.pow, differences=False),
    Case("Pow", [x(2, 3, low=0.5), x(3)], torch.pow),
    Case("Pow", [x(3, low=0.5), x(2, 3)], torch.pow),
    Case("Pow", [Given(np.array([0.0, 0.0, 2.0])), Given(np.array([0.0, 2.0, 3.0]))], torch.pow, differences=False),
    Case("Pow", [x(2, 3), np.array([2, 0, 1], dtype=np.int64)], torch.pow),
    Case("Neg", [x(2, 3)], torch.neg),
    Case("Abs", [x(2, 3)], torch.abs),
    Case("Abs", [Given(np.array([0.0, 1.0]))], torch.abs, differences=False),
    Case("Max", [x(2, 3), x(3)], torch.maximum),
    Case("Max", [x(2, 3), x(3), x(2, 1)], three(torch.maximum)),
    Case("Max", [x(2, 3)], torch.clone),
    Case("Min", [x(3), x(2, 3)], torch.minimum),
    Case("Min", [x(2, 1), x(3), x(1)], three(torch.minimum)),
    Case("Max", [TIED, Given(np.array([1.0, -3.0, 2.0]))], torch.maximum, differences=False),
    Case("Min", [Given(np.array([1.0, -3.0, 2.0])), TIED], torch.minimum, differences=False),
    Case("Sum", [x(2, 3), x(3), x(2, 1)], three(torch.add)),
    Case("Sum", [x(2, 3)], torch.clone),
    Case("Mean", [x(2, 3), x(3), x(2, 1)], lambda a, b, c: (a + b + c) / 3),
    Case("Identity", [x(2, 3)], torch.clone),
    Case("Cast", [x(2, 3)], torch.clone, {"to": 1}, float32_only=True),
    Case("CastLike", [x(2, 3), number(1)], lambda a, _: a.clone()),
    Case("CastLike", [x(2, 3), x(2)], lambda a, _: a.clone()),
    Case("Where", [MASK, x(3, 4), x(4)], torch.where),
    Case("Where", [ROW, x(3, 1), x()], torch.where),
    Case("Where", [MASK, x(4), number(0)], torch.where),
    Case("Clip", [x(3, 4), number(-0.7), number(0.9)], lambda a, low, high: a.clamp(low, high)),
    Case("Clip", [x(3, 4), None, number(0.9)], lambda a, high: a.clamp(max=high)),
    Case("Clip", [x(3, 4), number(-0.7)], lambda a, low: a.clamp(min=low)),
    Case("Clip", [x(3, 4)], torch.clone),
    Case("Clip", [x(3, 4), x(low=0.5, high=1), x(low=-1, high=-0.5)], crossed),
    Case("Clip", [x(3, 4), number(0.9), number(-0.7)], crossed),
    Case("Clip", [x(3, 4), number(0.9), x(low=-1, high=-0.5)], crossed),
    Case("Clip", [x(3, 4), x(low=-1, high=-0.5), x(low=0.5, high=1)], lambda a, low, high: a.clamp(low, high)),
    Case("Dropout", [x(3, 4)], torch.clone),
    Case("Dropout", [x(3, 4), number(0.3), Constant(np.array(False))], lambda a, *_: a.clone()),
]

REFUSED = [
    (Case("Dropout", [x(3, 4), number(0.3), np.array(True)], lambda a, *_: a.clone()), "training_mode"),
    (Case("Dropout", [x(3, 4), x(), Constant(np.array(True))], lambda a, *_: a.clone()), "its input 1"),
]
