"""Errors of the workstation that several modules raise."""

from __future__ import annotations

from edgepeft_runtime.errors import EdgepeftError


class SourceError(EdgepeftError):
    """A source that cannot be loaded."""
