"""The base of all errors, and their families: what ``except`` names."""

from __future__ import annotations

import copy
import copyreg
import re
from typing import Any, ClassVar, Self

from edgepeft_runtime.shown import printable, shortened

_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class EdgepeftError(Exception):
    """A mistake in the input of edgepeft, never one in edgepeft itself.

    A cause is a class with a code: ``class StaleUpdate(UpdateError, code="stale-update")``. A class without a code is a
    family, for ``except`` alone.

    Args:
        message: one sentence that says what failed.
        context: the facts of this case, such as file, tensor, node or value; ``None`` if the message has them all.
        hint: how to fix it; ``None`` if there is no sensible advice.

    ``context`` and ``hint`` have no default on purpose, so that whoever raises must decide. Texts may quote untrusted
    files: long texts are truncated, and characters that are not printable are escaped.
    """

    code: ClassVar[str]
    """Kebab-case name of the cause. It is stable, so that scripts can rely on it."""

    catalogue: ClassVar[dict[str, type[EdgepeftError]]] = {}
    """The class of each code, from all modules that are imported."""

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
        """Return an error with this message, as received from elsewhere, without the facts that the class takes."""
        error = cls.__new__(cls, message)
        EdgepeftError.__init__(error, message, context=context, hint=None)
        return error

    def reworded(self, message: str, context: str | None) -> Self:
        """Return the same error with another message and context, for a caller that knows the file by another name."""
        other = copy.copy(self)
        EdgepeftError.__init__(other, message, context=context, hint=self.hint)
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]

    def __str__(self) -> str:
        details = [f"{self.message} [{self.code}]", self.context, self.hint and f"hint: {self.hint}"]
        return "\n".join(filter(None, details))

    def render(self) -> str:
        """Return the error as the command prints it: several lines without a final newline."""
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
    """A data set that cannot be read, or is empty."""


class StateError(EdgepeftError):
    """A state directory that is damaged or belongs to another run."""


class UpdateError(EdgepeftError):
    """An update that is damaged, foreign to the bundle, or stale."""


class TrainingError(EdgepeftError):
    """A run that cannot continue: a loss or a gradient that is not finite, a setting out of range."""


class FleetError(EdgepeftError):
    """A round, a signature or a key of a fleet that cannot be trusted, or a remote that cannot be reached."""
