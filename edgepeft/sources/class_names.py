"""Check and normalize the names of classes for a bundle."""

from __future__ import annotations

from collections.abc import Sequence

from edgepeft.data.labels import normalized
from edgepeft.errors import WrongClassNames
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.names import some


def class_names(given: Sequence[str], where: str = "classes") -> tuple[str, ...]:
    """Return the names in the form in which labels are compared with them.

    Args:
        given: One name per class, in the order of their indices.
        where: Origin of the names, for the message.

    Raises:
        EdgepeftError: A name is empty, or two are equal, so that a label would be ambiguous.
    """
    names = tuple(normalized(str(name)) for name in given)
    if "" in names:
        raise _refused(f"Class {names.index('')} has no name.", names, where)
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        first, second = [index for index, name in enumerate(names) if name == double][:2]
        raise _refused(f"Classes {first} and {second} have the same name, {double!r}.", names, where)
    return names


def _refused(message: str, names: Sequence[str], where: str) -> EdgepeftError:
    return WrongClassNames(
        message,
        context=f"{where}: {some(names, 20)}",
        hint="give each class a different name, in the order of the labels (classes=, --classes).",
    )
