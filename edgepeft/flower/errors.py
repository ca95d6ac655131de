"""Errors of a fleet on Flower."""

from __future__ import annotations

from edgepeft_runtime.errors import UpdateError


class ClientError(UpdateError, code="client-error"):
    """A node failed, or sent an error that is not in the catalogue."""


class SecondAnswer(UpdateError, code="second-answer"):
    """A node has answered twice in a round."""
