"""Functions of one number, and softmax."""

import numpy as np
import torch
from torch.nn import functional

from tests.autodiff.rule_cases.case import Case, Given, x

KINK = Given(np.array([[-1.5, 0.0, 2.0], [3.5, -3.5, 0.25]]))

CASES = [
    Case("Relu", [x(3, 4)], torch.relu),
    Case("Relu", [KINK], torch.relu, differences=False),
    Case("ThresholdedRelu", [x(3, 4)], lambda a: functional.threshold(a, 0.6, 0.0), {"alpha": 0.6}),
    Case("ThresholdedRelu", [x(3, 4)], lambda a: functional.threshold(a, -0.6, 0.0), {"alpha": -0.6}),
    Case("Shrink", [x(3, 4)], lambda a: functional.hardshrink(a, 0.5), float32_only=True),
    Case("Shrink", [x(3, 4)], lambda a: functional.softshrink(a, 0.9), {"lambd": 0.9, "bias": 0.9}, float32_only=True),
    Case("LeakyRelu", [x(3, 4)], lambda a: functional.leaky_relu(a, 0.01)),
    Case("LeakyRelu", [x(3, 4)], lambda a: functional.leaky_relu(a, 0.3), {"alpha": 0.3}),
    Case("PRelu", [x(2, 3, 4), x(3, 1)], lambda a, s: functional.prelu(a, s[:, 0])),
    Case("PRelu", [x(2, 3), x(1)], functional.prelu),
    Case("Elu", [x(3, 4)], functional.elu),
    Case("Elu", [x(3, 4)], lambda a: functional.elu(a, 0.4), {"alpha": 0.4}),
    Case("Selu", [x(3, 4)], functional.selu),
    Case("Celu", [x(3, 4)], functional.celu),
    Case("Celu", [x(3, 4)], lambda a: functional.celu(a, 0.5), {"alpha": 0.5}),
    Case("Gelu", [x(3, 4, low=-4, high=4)], functional.gelu),
    Case("Gelu", [KINK], functional.gelu),
    Case("Gelu", [x(3, 4, low=-4, high=4)], lambda a: functional.gelu(a, approximate="tanh"), {"approximate": "tanh"}),
    Case("Sigmoid", [x(3, 4)], torch.sigmoid),
    Case("Tanh", [x(3, 4)], torch.tanh),
    Case("Softplus", [x(3, 4)], functional.softplus),
    Case("Softsign", [x(3, 4)], functional.softsign),
    Case("HardSigmoid", [x(3, 4, low=-5, high=5)], functional.hardsigmoid, {"alpha": 1 / 6, "beta": 0.5}),
    Case("HardSigmoid", [x(3, 4, low=-5, high=5)], lambda a: (a * 0.2 + 0.5).clamp(0, 1)),
    Case("HardSwish", [x(3, 4, low=-5, high=5)], functional.hardswish),
    Case("Mish", [x(3, 4, low=-4, high=4)], functional.mish),
    Case("Erf", [x(3, 4)], torch.erf),
    Case("Exp", [x(3, 4)], torch.exp),
    Case("Log", [x(3, 4, low=0.5)], torch.log),
    Case("Sqrt", [x(3, 4, low=0.5)], torch.sqrt),
    Case("Reciprocal", [x(3, 4, low=0.5)], torch.reciprocal),
    Case("Sin", [x(3, 4)], torch.sin),
    Case("Cos", [x(3, 4)], torch.cos),
    Case("Tan", [x(3, 4, low=-1, high=1)], torch.tan),
    Case("Asin", [x(3, 4, low=-0.8, high=0.8)], torch.asin),
    Case("Acos", [x(3, 4, low=-0.8, high=0.8)], torch.acos),
    Case("Atan", [x(3, 4)], torch.atan),
    Case("Sinh", [x(3, 4)], torch.sinh),
    Case("Cosh", [x(3, 4)], torch.cosh),
    Case("Asinh", [x(3, 4)], torch.asinh),
    Case("Acosh", [x(3, 4, low=1.5, high=3)], torch.acosh),
    Case("Atanh", [x(3, 4, low=-0.8, high=0.8)], torch.atanh),
    Case("Softmax", [x(2, 3, 4)], lambda a: a.softmax(-1)),
    Case("Softmax", [x(2, 3, 4)], lambda a: a.softmax(1), {"axis": 1}),
    Case("Softmax", [x(2, 3, 4)], lambda a: a.softmax(-3), {"axis": -3}),
    Case("LogSoftmax", [x(2, 3, 4)], lambda a: a.log_softmax(-1)),
    Case("LogSoftmax", [x(2, 3, 4)], lambda a: a.log_softmax(1), {"axis": 1}),
]
