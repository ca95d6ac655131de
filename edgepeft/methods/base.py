"""What a method is, and the table of their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from torch import nn

from edgepeft.methods.registry import METHODS
from edgepeft_export.forward import Forward
from edgepeft_runtime.errors import EdgepeftError


class MethodError(EdgepeftError):
    """A method that does not fit the model, or a setting of it out of range."""


class Method(Protocol):
    """Marks or adds what may train. Implementations are frozen dataclasses of their settings."""

    @property
    def name(self) -> str:
        """The name users choose it by."""

    def attach(self, model: nn.Module) -> nn.Module:
        """The model with the method's parameters, and no others, set to ``requires_grad``; may change ``model``."""


@runtime_checkable
class GraphMethod(Method, Protocol):
    """A method that has a part to do on the forward graph."""

    def on_graph(self, forward: Forward, model: nn.Module | None, /) -> Forward:
        """The graph with what trains as the method wants it; ``model`` is ``None`` where the source is a file."""


def method_class(name: str) -> type[Any]:
    """The class of the method of that name: a dataclass of its settings."""
    if name not in METHODS:
        raise MethodError(
            "unknown-method",
            f"There is no method named {name!r}.",
            context=f"there are: {', '.join(METHODS)}",
            hint="choose one of them.",
        )
    module, _, attribute = METHODS[name].partition(":")
    found: type[Any] = getattr(import_module(module), attribute)
    return found


def by_name(name: str, **settings: Any) -> Method:
    """The method of that name with the given settings."""
    cls = method_class(name)
    try:
        method: Method = cls(**settings)
    except TypeError:
        raise unknown_setting(name, settings, [field.name for field in fields(cls)]) from None
    return method


def unknown_setting(method: str, given: Iterable[str], known: Sequence[str]) -> MethodError:
    """The error of a setting that a method does not have."""
    return MethodError(
        "method-setting",
        f"Method {method!r} has no setting {', '.join(repr(name) for name in given if name not in known)}.",
        context=f"its settings: {', '.join(known) or 'none'}",
        hint="see the method's docstring.",
    )


def out_of_range(name: str, value: object, allowed: str) -> MethodError:
    """The error of a setting with a value that it cannot have."""
    return MethodError(
        "method-setting", f"{name} = {value!r} is out of range.", context=None, hint=f"choose {allowed}."
    )


def train_only(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Set ``requires_grad`` on the parameters whose names match, and on no others; returns the names.

    A pattern with ``*`` or ``?`` is matched against the whole name; a plain one names a parameter, or a module with all
    it holds.
    """
    check_patterns(model, patterns)
    chosen = [name for name, _ in model.named_parameters() if any(matches(name, pattern) for pattern in patterns)]
    wanted = set(chosen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)
    return chosen


def check_patterns(model: nn.Module, patterns: Sequence[str]) -> None:
    """Refuse a pattern that matches no parameter."""
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise MethodError(
                "no-such-parameter",
                f"No parameter of {type(model).__name__} matches {pattern!r}.",
                context=f"there are: {_some(names)}",
                hint="give the name of a parameter or module, or a pattern such as 'encoder.layer.5.*'.",
            )


def matches(name: str, pattern: str) -> bool:
    """Whether a parameter's name fits a pattern, or lies in the module it names."""
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


_HEADS = ("classifier", "score", "head", "fc", "qa_outputs", "lm_head")


def head_modules(model: nn.Module) -> list[str]:
    """Names of the task heads at the top of the model: what transformers and torchvision call them."""
    names = [name for name, _ in model.named_children()]
    heads = tuple(name for name in names if name in _HEADS)
    # peft trains whole what ends with such a name, as DistilBERT's pre_classifier does.
    return [name for name in names if name.endswith(heads)]


def trained_head(model: nn.Module, given: Sequence[str] | None) -> list[str]:
    """Modules that train whole beside a method's own parameters: those given, else the head of a classifier.

    The head of a language model stays: it is tied to the embedding in many of them.
    """
    return [name for name in head_modules(model) if name != "lm_head"] if given is None else list(given)


def _some(names: Sequence[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (" …" if len(names) > limit else "")
