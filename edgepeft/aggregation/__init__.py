"""Aggregate the updates of a round into one adapter: means, their error for LoRA, and robust statistics."""

from edgepeft.aggregation.acceptance import Acceptance, check_acceptance
from edgepeft.aggregation.combining import Aggregate, aggregate
from edgepeft.aggregation.errors import AggregationError
from edgepeft.aggregation.report import AggregateReport
from edgepeft.aggregation.settings import AggregationSettings, Privacy, Robust

__all__ = [
    "Acceptance",
    "Aggregate",
    "AggregateReport",
    "AggregationError",
    "AggregationSettings",
    "Privacy",
    "Robust",
    "aggregate",
    "check_acceptance",
]
