"""Errors that a user can meet: each says what happened, where, and what to do about it."""

from __future__ import annotations

from edgepeft_runtime.shown import printable, shortened


class EdgepeftError(Exception):
    """A mistake in what edgepeft was given, never one in edgepeft itself.

    Args:
        reference: kebab-case name of the kind of error; stable, so that scripts may look for it.
        message: one sentence: what could not be done.
        context: the facts of this case: which file, tensor, node, value; ``None`` where the message holds them all.
        hint: what to do about it; ``None`` where nothing sensible can be said.

    ``context`` and ``hint`` have no default on purpose: whoever raises must decide. Texts may quote a file that
    somebody else wrote: what is very long is cut, and what is not print is escaped.
    """

    def __init__(self, reference: str, message: str, *, context: str | None, hint: str | None) -> None:
        self.reference = reference
        self.message = printable(shortened(message))
        self.context = None if context is None else printable(shortened(context))
        self.hint = None if hint is None else printable(shortened(hint))
        super().__init__(self.message)

    def __str__(self) -> str:
        lines = [self.message]
        if self.context is not None:
            lines.append(self.context)
        if self.hint is not None:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)

    def render(self) -> str:
        """The error as the command prints it, several lines without a final newline."""
        lines = [f"error: {self.reference}", f"× {self.message}"]  # noqa: RUF001  (the sign is meant)
        if self.context is not None:
            lines += [("╰─> " if i == 0 else "    ") + line for i, line in enumerate(self.context.splitlines())]
        if self.hint is not None:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class BundleError(EdgepeftError):
    """A bundle that is missing, damaged, or of a format this runtime does not know."""


class BatchError(EdgepeftError):
    """A batch that does not fit the bundle: name, dtype, shape, label or value."""


class DataError(EdgepeftError):
    """A data set that cannot be read, or holds nothing to train on."""


class StateError(EdgepeftError):
    """A state directory that is damaged or belongs to another run."""


class UpdateError(EdgepeftError):
    """An update that is damaged, foreign to the bundle, or stale."""


class TrainingError(EdgepeftError):
    """A run that cannot go on: a loss or a gradient that is not finite, a setting out of range."""


class FleetError(EdgepeftError):
    """A round, a signature, a key or a place of a fleet that cannot be trusted or reached."""
