"""Settings of quantization, and its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgepeft_export.graph.constants import same_memory
from edgepeft_export.graph.int4 import Int4Matrix
from edgepeft_export.graph.rounding import Int8Matrix
from edgepeft_export.graph.smoothing import Smoothing
from edgepeft_runtime.errors import BadSetting
from edgepeft_runtime.files.schema import Json
from edgepeft_runtime.names import some

COMPUTE = ("fp32", "int8", "int4")
GRADIENTS = ("tensor", "row")
ROUNDINGS = ("auto", "row")
BLOCKS = (16, 32, 64, 128, 256)

Matrix = TypeVar("Matrix", Int8Matrix, Int4Matrix)


@dataclass(frozen=True)
class Quantization:
    """How the frozen tensors of a model are quantized.

    Attributes:
        compute: ``int8`` rounds weights to 8 bits, with a scale per output channel, and multiplies in integer
            arithmetic, forward and backward; ``int4`` stores 4 bits, with a step per block, which the graphs expand to
            int8, heads and kernels in 8 bits; ``fp32`` quantizes nothing.
        keep: names or patterns of weights that stay fp32; ``*`` and ``?`` match, a plain name means its submodules too.
        block: elements per step of ``int4``.
        gradient: how gradients are rounded before an integer matmul. ``row``: rows are normalized first, because
            those of different tokens differ in size. ``tensor``: with one scale for all rows, which is a little faster.
        rounding: how inputs of an integer matmul are rounded. ``row``: with a scale per row; ``auto``: so in language
            models, which ``edgepeft.prepare`` knows by their loss, and where the data shows that one scale for all
            rows loses too much.
        smallest: tensors of fewer elements stay fp32.
        tolerance: with calibration data, largest relative error of the model's outputs (L2); the most sensitive
            weights stay fp32 until it is met.
        codebook: values that the elements of each remaining fp32 weight share (Han et al., ICLR 2016), 2 to 256. Its
            indices are stored and looked up when the graph is loaded, so only the bundle gets smaller.
        large: bytes of a model's quantized weights from which on each int8 matrix is stored in the layouts of both
            passes. Below, onnxruntime transposes it once, into its own memory, when it loads a graph.
    """

    compute: str = "fp32"
    keep: tuple[str, ...] = ()
    block: int = 32
    gradient: str = "row"
    rounding: str = "auto"
    smallest: int = 2048
    tolerance: float = 0.25
    codebook: int | None = None
    large: int = 100_000_000

    def __post_init__(self) -> None:
        _check("compute", self.compute, COMPUTE)
        _check("gradient", self.gradient, GRADIENTS)
        _check("rounding", self.rounding, ROUNDINGS)
        _check("block", self.block, BLOCKS)
        if self.smallest < 1:
            raise BadSetting("smallest", self.smallest, "1 or more")
        if not self.tolerance > 0:
            raise BadSetting("tolerance", self.tolerance, "a number above 0")
        if self.codebook is not None and not 2 <= self.codebook <= 256:
            raise BadSetting("codebook", self.codebook, "2 to 256")
        if self.large < 0:
            raise BadSetting("large", self.large, "0 or more")

    @property
    def rounds(self) -> bool:
        """Whether any weight gets other values."""
        return self.compute != "fp32" or self.codebook is not None

    def keeps(self, name: str) -> bool:
        """Whether the weight of that name stays fp32."""
        return any(fnmatchcase(name, pattern) or name.startswith(f"{pattern}.") for pattern in self.keep)


@dataclass(frozen=True)
class QuantizedTensor:
    """The float tensor that a quantized tensor represents.

    Attributes:
        kind: ``int8``, ``int4`` or ``codebook``.
        elements: number of elements of the float tensor.
    """

    kind: str
    elements: int


@dataclass(frozen=True)
class _Made:
    """A matrix, the weight that it was made of, and how."""

    source: NDArray[np.generic]
    how: tuple[object, ...]
    matrix: Int8Matrix | Int4Matrix


@dataclass
class Matrices:
    """Rounded weights by name. A weight is rounded once where several graphs read the same memory alike."""

    made: dict[str, _Made] = field(default_factory=dict)

    def matrix(
        self, name: str, source: NDArray[np.generic], how: tuple[object, ...], make: Callable[[], Matrix]
    ) -> Matrix:
        """The matrix of a weight; ``make`` rounds ``source``, and ``how`` is all else that decides the result."""
        known = self.made.get(name)
        if known is None or known.how != how or not same_memory(known.source, source):
            known = self.made[name] = _Made(source, how, make())
        matrix: Matrix = known.matrix  # type: ignore[assignment]  # ``how`` says which kind it is
        return matrix


@dataclass
class QuantizationReport:
    """The result of ``edgepeft_export.quantize.quantize``.

    Attributes:
        quantized: by the name of the initializer with the integers; includes tensors that were quantized in the source.
        wider: weights of an int4 model that have 8 bits, each with the reason.
        kept: frozen float tensors of the smallest size or more that stayed float, each with the reason.
        rows: by the names of the weights before whose int8 matmuls activations are rounded with a scale per row, the
            factors by which the activation is smoothed before.
        rounded: by the names of weights, the integers whose errors calibration data compensated.
        matrices: the integers of the others.
    """

    quantized: Mapping[str, QuantizedTensor] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    rows: Mapping[str, Smoothing | None] = field(default_factory=dict)
    wider: dict[str, str] = field(default_factory=dict)
    rounded: Mapping[str, Int8Matrix] = field(default_factory=dict)
    matrices: Matrices = field(default_factory=Matrices)

    def lines(self) -> list[str]:
        """The weights that stayed float, or got 8 bits instead of 4, one line for each reason."""
        return [*_by_reason(self.kept, "stay fp32"), *_by_reason(self.wider, "get 8 bits instead of 4")]

    def provenance(self, settings: Quantization) -> Json:
        """For the manifest."""
        described: Json = {} if settings.compute == "fp32" else {"compute": settings.compute}
        if settings.compute == "int4":
            described["block"] = settings.block
        if settings.compute != "fp32" and settings.gradient != "row":
            described["gradient"] = settings.gradient
        if settings.codebook is not None:
            described["codebook"] = settings.codebook
        return {**described, "kept": sorted(self.kept)} if self.kept else described


def _by_reason(reasons: Mapping[str, str], what: str) -> list[str]:
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    verb, _, rest = what.partition(" ")
    return [
        f"{some(group)} {verb if len(group) > 1 else f'{verb}s'} {rest}: {reason}" for reason, group in names.items()
    ]


def _check(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise BadSetting(name, value, " or ".join(map(str, allowed)))
