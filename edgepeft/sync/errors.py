"""Errors of the workstation's side of a sync."""

from __future__ import annotations

from edgepeft_runtime.errors import EdgepeftError


class SyncError(EdgepeftError):
    """A remote that cannot be read, a directory that cannot be written, a workspace that lacks something."""
