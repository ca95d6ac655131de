"""Groups of options of ``edgepeft.prepare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import ClassVar, TypeAlias, TypeVar

from torch import Tensor

from edgepeft.compress import Pruning
from edgepeft.preparation.errors import WrongOption
from edgepeft.preparation.memory_budget import MemoryBudget
from edgepeft_export.forward.torch_source.export import DynamicAxes
from edgepeft_export.quantize.choose import Batch
from edgepeft_runtime.bundle.specs import ImageSpec, TableSpec, TextSpec

Kinds: TypeAlias = Mapping[str, tuple[type, ...]]


class Group:
    """A group of options. Each subclass names the types of its fields, which are checked when it is made."""

    kinds: ClassVar[Kinds]

    def __post_init__(self) -> None:
        for name, kinds in self.kinds.items():
            value = getattr(self, name)
            if not isinstance(value, (*kinds, NoneType)):
                raise _wrong_type(f"{type(self).__name__}({name}=…)", kinds, value)


@dataclass(frozen=True)
class Compression(Group):
    """How a model and its train step are made smaller, apart from quantization.

    Attributes:
        prune: Structures to remove from the model, or weights to set to zero, before the method is attached.
        calibration: A few batches, arrays by name, on which the effect of quantization is measured and the errors of
            rounded weights are compensated, and heads, neurons and weights are scored. They may include labels.
        weights: How graphs read frozen weights. ``constant``: as parts of whole graphs, which onnxruntime optimizes.
            ``input``: by segments of the model, of which equal ones share a graph; no weight is copied, and activations
            inside a segment are computed a second time in the backward pass. By default ``input`` if the frozen weights
            take more than 100 MB.
        chunks: How much of the largest tensors of a step exists at once: ``normal``, or ``small``, which uses less
            memory and more time.
        memory_budget: Memory that training may use; determines ``weights``, ``chunks`` and the number of examples per
            pass.
        allow_accuracy_loss: Accept a quantized model that is far from the fp32 one.
    """

    kinds: ClassVar[Kinds] = {
        "prune": (Pruning,),
        "calibration": (Sequence,),
        "weights": (str,),
        "chunks": (str,),
        "memory_budget": (MemoryBudget,),
        "allow_accuracy_loss": (bool,),
    }

    prune: Pruning | None = None
    calibration: Sequence[Batch] | None = None
    weights: str | None = None
    chunks: str = "normal"
    memory_budget: MemoryBudget | None = None
    allow_accuracy_loss: bool = False


@dataclass(frozen=True)
class Preprocessing(Group):
    """How a device turns raw data into inputs; by default as the source says.

    Attributes:
        text: How texts become token ids.
        tokenizer: Path of a ``tokenizer.json`` to include in the bundle, for ``text``.
        image: How images become arrays.
        table: Which columns of a table become the only input, and how they are standardized; see
            ``edgepeft.data.standardization``.
    """

    kinds: ClassVar[Kinds] = {
        "text": (TextSpec,),
        "tokenizer": (str, Path),
        "image": (ImageSpec,),
        "table": (TableSpec,),
    }

    text: TextSpec | None = None
    tokenizer: str | Path | None = None
    image: ImageSpec | None = None
    table: TableSpec | None = None


@dataclass(frozen=True)
class Interface(Group):
    """The inputs, outputs and labels of the graphs.

    Attributes:
        dynamic_axes: Sizes that may change, ``{input: {axis: name}}``; see ``edgepeft_export.forward.from_torch``.
        outputs: Outputs of the model to keep, or any tensors of an ``.onnx`` file; the loss reads the first. By default
            a loss over scores reads a file's scores before its last Softmax or Sigmoid.
        example_labels: An example of each label, by name, for a torch function as loss.
    """

    kinds: ClassVar[Kinds] = {
        "dynamic_axes": (Mapping,),
        "outputs": (list, tuple),
        "example_labels": (Mapping,),
    }

    dynamic_axes: DynamicAxes | None = None
    outputs: Sequence[str] | None = None
    example_labels: Mapping[str, Tensor] | None = None


Some = TypeVar("Some", bound=Group)


def given(name: str, value: Some | None, kind: type[Some]) -> Some:
    """Return a group of options that was given as an argument of this name, or its defaults."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise _wrong_type(name, (kind,), value)
    return value


def _wrong_type(option: str, kinds: Sequence[type], value: object) -> WrongOption:
    """Return an error with the option to which a value of this type belongs, if there is one."""
    groups = (Compression, Preprocessing, Interface)
    fits = [
        f"{kind.__name__.lower()}=edgepeft.{kind.__name__}({name}=…)"
        for kind in groups
        for name, types in kind.kinds.items()
        if type(value) in types and type(value) not in (str, bool, list, tuple)
    ]
    fits += [f"{kind.__name__.lower()}=…" for kind in groups if isinstance(value, kind)]
    wanted = " or ".join(kind.__name__ for kind in kinds)
    return WrongOption(
        f"{option} is of the type {type(value).__name__}, and must be {wanted}.",
        context=None,
        hint=f"write {fits[0]}" if fits else f"give {wanted}, or leave it out.",
    )
