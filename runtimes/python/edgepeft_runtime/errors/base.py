"""The base of all errors, and their families: what ``except`` names."""

from __future__ import annotations

import copy
import copyreg
import re
from typing import Any, ClassVar, Self

from edgepeft_runtime.shown import printable, shortened

_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class EdgepeftError(Exception):
    """A mistake in what edgepeft was given, never one in edgepeft itself.

    A cause is a class with a code: ``class StaleUpdate(UpdateError, code="stale-update")``. A class without a code is a
    family, for ``except`` alone.

    Args:
        message: one sentence: what could not be done.
        context: the facts of this case: which file, tensor, node, value; ``None`` where the message holds them all.
        hint: what to do about it; ``None`` where nothing sensible can be said.

    ``context`` and ``hint`` have no default on purpose: whoever raises must decide. Texts may quote a file that
    somebody else wrote: what is very long is cut, and what is not print is escaped.
    """

    code: ClassVar[str]
    """Kebab-case name of the cause. It is stable, so that scripts may look for it."""

    catalogue: ClassVar[dict[str, type[EdgepeftError]]] = {}
    """The class of each code, of all modules that are imported."""

    def __init_subclass__(cls, code: str | None = None) -> None:
        if code is None:
            return
        assert _CODE.fullmatch(code), f"{code!r} is not in kebab-case"
        known = EdgepeftError.catalogue.setdefault(code, cls)
        assert (known.__module__, known.__qualname__) == (cls.__module__, cls.__qualname__), f"{code} is taken: {known}"
        cls.code = code

    def __init__(self, message: str, *, context: str | None, hint: str | None) -> None:
        self.message = printable(shortened(message))
        self.context = None if context is None else printable(shortened(context))
        self.hint = None if hint is None else printable(shortened(hint))
        super().__init__(self.message)

    @classmethod
    def said(cls, message: str, *, context: str | None) -> Self:
        """Return the error that somebody else's message names, whatever facts the class takes."""
        error = cls.__new__(cls, message)
        EdgepeftError.__init__(error, message, context=context, hint=None)
        return error

    def reworded(self, message: str, context: str | None) -> Self:
        """Return the same error in other words, as for whoever knows the file by another name."""
        other = copy.copy(self)
        EdgepeftError.__init__(other, message, context=context, hint=self.hint)
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]

    def __str__(self) -> str:
        details = [f"{self.message} [{self.code}]", self.context, self.hint and f"hint: {self.hint}"]
        return "\n".join(filter(None, details))

    def render(self) -> str:
        """The error as the command prints it, several lines without a final newline."""
        lines = [f"error: {self.code}", f"× {self.message}"]  # noqa: RUF001  (the sign is meant)
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
