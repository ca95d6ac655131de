"""What a user should know and that stops nothing: a text that was cut, a column that is not used."""

from __future__ import annotations

import warnings

from edgepeft_runtime.shown import printable


class EdgepeftWarning(UserWarning):
    """Something that was given is not used, or is read by a rule the user may not expect; one line."""


def notice(text: str) -> None:
    """Warn in one line. The command prints it to standard error; in Python it is a warning like any other.

    Callers say a thing once per file or source, with how many it concerns, not once per example.
    """
    warnings.warn(printable(" ".join(text.split()), keep=""), EdgepeftWarning, stacklevel=2)
