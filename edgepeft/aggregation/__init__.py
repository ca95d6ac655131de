"""Many updates of a round to one adapter: means, what they cost LoRA, and what protects against bad devices."""

from edgepeft.aggregation.combining import Aggregate, aggregate
from edgepeft.aggregation.errors import AggregationError
from edgepeft.aggregation.gating import Verdict, gate
from edgepeft.aggregation.report import Report
from edgepeft.aggregation.settings import Privacy, Robust, Settings

__all__ = ["Aggregate", "AggregationError", "Privacy", "Report", "Robust", "Settings", "Verdict", "aggregate", "gate"]
