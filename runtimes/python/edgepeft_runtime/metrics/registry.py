"""The metrics by the names that users choose them by: one file per family in ``metrics/builtin``."""

from __future__ import annotations

from collections.abc import Callable

from edgepeft_runtime.errors import BadSetting
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.metrics.base import Metric, OwnMetric
from edgepeft_runtime.registry import Registry

METRICS = Registry(Metric, "edgepeft_runtime.metrics.builtin", "metric")

MetricLike = str | Metric | OwnMetric | Callable[[dict[str, Array], dict[str, Array]], float]
"""A name, such as ``f1`` or ``recall@5``; a metric; or a function of all outputs and all labels."""


def metric_of(metric: MetricLike) -> Metric | OwnMetric:
    """Return a metric by its name, or make one of a function.

    Raises:
        SettingError: There is no metric of that name, or the number after ``@`` is none.
    """
    if isinstance(metric, Metric | OwnMetric):
        return metric
    if not isinstance(metric, str):
        return OwnMetric(metric)
    name, at, number = metric.partition("@")
    if not at:
        return METRICS.make(name)
    if not number.isdecimal() or int(number) == 0:
        raise BadSetting("metric", metric, "a whole number after @, such as recall@5")
    return METRICS.make(f"{name}@k", k=int(number))


def name_of(metric: MetricLike) -> str:
    """Return the name under which an evaluation lists the metric."""
    return metric if isinstance(metric, str) else metric_of(metric).name
