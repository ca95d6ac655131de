"""The acceptance check of a round: the loss, or a metric, on held-out data must not become worse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepeft_runtime.bundle.adapter_source import AdapterSource
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.sources import Data
from edgepeft_runtime.engine.evaluate import Evaluation
from edgepeft_runtime.errors import NoData, WrongMetric
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.metrics.registry import MetricLike
from edgepeft_runtime.train.trainer import Trainer


@dataclass(frozen=True)
class Acceptance:
    """Whether the round is accepted, and the evaluations before and after it."""

    accepted: bool
    before: Evaluation
    after: Evaluation


def check_acceptance(
    bundle: Bundle | str | Path,
    parameters: Mapping[str, Array],
    data: Data,
    before: AdapterSource | Evaluation | None = None,
    *,
    tolerance: float = 0.0,
    batch_size: int = 32,
    metric: MetricLike | None = None,
) -> Acceptance:
    """Evaluate a round on held-out data, as a device would, and compare it with its start.

    Args:
        bundle: The round's bundle, or its directory.
        parameters: The round's result, which is not a stack.
        data: Held-out data in a form that ``edgepeft_runtime.Trainer.evaluate`` accepts.
        before: The adapter that the round started from, or its evaluation on the same data; by default the bundle's.
        tolerance: Largest accepted increase of the loss, or change of the metric for the worse.
        batch_size: Examples per batch.
        metric: What decides instead of the loss: see ``edgepeft_runtime.Trainer.evaluate``.

    Raises:
        BundleError: The parameters do not fit the bundle.
        DataError: There are no examples to evaluate, or the metric is not defined on them.
        SettingError: The metric is unknown, or not defined for the bundle's loss.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    metrics = () if metric is None else (metric,)
    old = before if isinstance(before, Evaluation) else _evaluated(opened, before, data, batch_size, metrics)
    new = _evaluated(opened, parameters, data, batch_size, metrics)
    if list(old.metrics) != list(new.metrics):
        raise WrongMetric(
            "The evaluation before the round has other metrics.",
            context=f"expected {', '.join(new.metrics) or 'none'}, found {', '.join(old.metrics) or 'none'}",
            hint="evaluate the start with the same metric, or pass its adapter.",
        )
    sign = -1 if new.deciding.greater_is_better else 1
    return Acceptance(sign * new.deciding.value <= sign * old.deciding.value + tolerance, old, new)


def _evaluated(
    bundle: Bundle, adapter: AdapterSource | None, data: Data, batch_size: int, metrics: Sequence[MetricLike]
) -> Evaluation:
    with Trainer.open(bundle, adapter=adapter) as trainer:
        evaluation = trainer.evaluate(data, batch_size, metrics)
    if metrics and not math.isfinite(evaluation.deciding.value):
        raise NoData(
            "The metric is not defined on the held-out data.",
            context=f"{next(iter(evaluation.metrics))} over {evaluation.examples} examples",
            hint="hold out examples of every class, or let the loss decide.",
        )
    return evaluation
