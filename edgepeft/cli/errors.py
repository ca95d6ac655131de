"""Errors of the command."""

from __future__ import annotations

from edgepeft_runtime.errors import EdgepeftError, UpdateError


class ForeignAdapter(UpdateError, code="foreign-adapter"):
    """An adapter does not have the parameters of the bundle. Prepare the adapter directory itself."""


class Unexpected(EdgepeftError, code="unexpected"):
    """A library failed in a way that has no error of its own yet. EDGEPEFT_DEBUG=1 shows where; please report it."""
