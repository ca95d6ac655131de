"""Warnings for users, such as that a text was truncated or a column is not used."""

from __future__ import annotations

import warnings

from edgepeft_runtime.shown import printable


class EdgepeftWarning(UserWarning):
    """Input that is not used, or is interpreted in a way that the user may not expect; one line."""


def notice(text: str) -> None:
    """Warn in one line. The command prints it to standard error; in Python it is a warning like any other.

    Callers warn once per file or source, with the number of examples concerned, not once per example.
    """
    warnings.warn(printable(" ".join(text.split()), keep=""), EdgepeftWarning, stacklevel=2)
