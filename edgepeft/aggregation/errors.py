"""Errors of aggregation."""

from __future__ import annotations

from edgepeft_runtime.errors import EdgepeftError


class AggregationError(EdgepeftError):
    """Updates cannot be combined into one adapter."""


class MixedRanks(AggregationError, code="mixed-ranks"):
    """The rule cannot combine bundles of different ranks. Choose svd or stack."""


class OtherModel(AggregationError, code="other-model"):
    """The bundles were prepared from different models or targets."""


class NoUpdates(AggregationError, code="no-updates"):
    """There is no usable update. The context says why each one was refused."""


class TooFewUpdates(AggregationError, code="too-few-updates"):
    """There are fewer usable updates than the round needs."""


class MeanOverflows(AggregationError, code="mean-overflows"):
    """The mean of the updates is too large for the dtype of the adapter. Clip the updates."""


class ChangedFile(AggregationError, code="changed-file"):
    """An update was changed while it was read. Aggregate copies that nobody writes to."""


class NoExamples(AggregationError, code="no-examples"):
    """An update was trained on no example, so it has no weight."""


class NonTrainableChanged(AggregationError, code="non-trainable-changed"):
    """An update changes a parameter that is not trained under the rule."""


class PrivateIndices(AggregationError, code="private-indices"):
    """Indices that devices choose from their own data reveal something about it. Choose them on the workstation."""


class NothingTrimmed(AggregationError, code="nothing-trimmed"):
    """A trimmed mean of so few updates cuts off no value. Wait for more, or choose the median."""


class WorseThanBefore(AggregationError, code="worse-than-before"):
    """The combined adapter has a higher loss on held-out data, so it was not written."""


class TargetAmongUpdates(AggregationError, code="target-among-updates"):
    """The output would be in the folder of the updates, and count as an update the next time."""


class StackCannotBeEvaluated(AggregationError, code="stack-cannot-be-evaluated"):
    """A stack does not fit the graphs of the bundle. Merge it to onnx and evaluate that."""
