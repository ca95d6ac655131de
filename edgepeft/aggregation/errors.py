"""What can be wrong with a round."""

from __future__ import annotations

from edgepeft_runtime.errors import EdgepeftError


class AggregationError(EdgepeftError):
    """Updates that cannot become one adapter, or a setting out of range."""


def bad_setting(name: str, value: object, allowed: str) -> AggregationError:
    """The error of a setting with a value that it cannot have."""
    return AggregationError(
        "bad-setting", f"{name} = {value!r} is out of range.", context=None, hint=f"choose {allowed}."
    )
