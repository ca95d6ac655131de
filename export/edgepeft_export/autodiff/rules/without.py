"""Operators that a gradient never crosses, each with the reason."""

from __future__ import annotations

from edgepeft_export.autodiff.registry import no_gradient, qualified
from edgepeft_export.graph.custom_ops import DOMAIN, STOP_GRADIENT
from edgepeft_export.opset.domains import ML

no_gradient("it reads the shape, not the values", "Shape", "Size")
no_gradient("it reads a shape or nothing", "ConstantOfShape", "Constant", "EyeLike")
no_gradient(
    "it draws at random",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
)
no_gradient(
    "its result is true or false", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf"
)
no_gradient("it works on true and false", "And", "Or", "Xor", "Not")
no_gradient("it works on the bits of integers", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot")
no_gradient("its results are positions", "ArgMax", "ArgMin", "NonZero", "NonMaxSuppression")
no_gradient("it is flat almost everywhere", "Floor", "Ceil", "Round", "Sign", "Hardmax")
no_gradient(
    "it is flat almost everywhere",
    "MelWeightMatrix",
    *(qualified(name, ML) for name in ("Binarizer", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor")),
)
no_gradient("the model detaches it", qualified(STOP_GRADIENT, DOMAIN))
