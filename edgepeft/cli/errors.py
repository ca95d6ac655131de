"""Errors of the command."""

from __future__ import annotations

from edgepeft_runtime.errors import UpdateError


class ForeignAdapter(UpdateError, code="foreign-adapter"):
    """An adapter does not have the parameters of the bundle. Prepare the adapter directory itself."""
