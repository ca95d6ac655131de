"""The interface of methods, and functions to mark parameters by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar, Protocol

from edgepeft.methods.errors import NoSuchParameter
from edgepeft.sources.architectures import head_modules
from edgepeft_runtime.settings import Named

if TYPE_CHECKING:
    from torch import nn

    from edgepeft_export.forward import Forward
    from edgepeft_export.forward.onnx_source.lora import GraphLora


class OnnxReader(Protocol):
    """Reads an ``.onnx`` file, given what trains: names or patterns of initializers, pairs to attach, and kinds."""

    def __call__(
        self, trainable: Sequence[str], lora: GraphLora | None = None, *, kinds: Sequence[str] = ()
    ) -> Forward: ...


@dataclass(frozen=True)
class Method(Named):
    """Marks or adds the parameters that train.

    A subclass is a frozen dataclass of its settings. It is found by its ``name`` in the files of this package. They
    import torch only inside functions, because the command lists methods without torch.
    """

    supports_onnx: ClassVar[bool] = False
    """Whether it can be attached to an ``.onnx`` file."""
    adds_parameters: ClassVar[bool] = True
    """Whether it adds parameters to the model. Others train parameters under the model's own names."""

    def attach(self, model: nn.Module) -> nn.Module:
        """Set ``requires_grad`` on the method's parameters alone, and return the model, or a wrapper around it."""
        raise NotImplementedError

    def read_onnx(self, read: OnnxReader, trainable: Sequence[str]) -> Forward:
        """Return the forward graph of a file, where the method supports it.

        Args:
            read: Reads the file.
            trainable: Names or patterns of the initializers that train.
        """
        return read(trainable)

    def on_graph(self, forward: Forward, _model: nn.Module | None, /) -> Forward:
        """Return the graph with the parameters that the method trains; for a file, the model is ``None``."""
        return forward


def train_only(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Set ``requires_grad`` on the parameters whose names match, and on no others; return their names.

    A pattern with ``*`` or ``?`` is matched against the whole name. A plain one names a parameter, or a module with all
    of its parameters.
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
            raise NoSuchParameter(
                f"No parameter of {type(model).__name__} matches {pattern!r}.",
                context=f"parameters: {_some(names)}",
                hint="give the name of a parameter or module, or a pattern such as 'encoder.layer.5.*'.",
            )


def matches(name: str, pattern: str) -> bool:
    """Whether a parameter's name fits a pattern, or is in the module that the pattern names."""
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def fits(name: str, target: str) -> bool:
    """Whether a target is a module's name or its last parts, as in peft."""
    return name == target or name.endswith(f".{target}")


def trained_head(model: nn.Module, given: Sequence[str] | None) -> list[str]:
    """Return the modules that train in full besides a method's own parameters: those given, else a classifier's head.

    The head of a language model stays frozen, because many models tie it to the embedding.
    """
    return [name for name in head_modules(model) if name != "lm_head"] if given is None else list(given)


def _some(names: Sequence[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (" …" if len(names) > limit else "")
