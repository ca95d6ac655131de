"""The parts of a manifest as frozen dataclasses (section 2 of the SPEC)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from edgepeft_runtime.bundle.activation_sizes import MemorySpec
from edgepeft_runtime.bundle.adapter_layout import AdapterLayout
from edgepeft_runtime.bundle.generation_spec import GenerationSpec
from edgepeft_runtime.bundle.programs import CacheEntry, Programs
from edgepeft_runtime.files.schema import Check, Json, Mark, Natural, Sha256, Shape, Sizes, one_of

DTYPES = ("float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool")
ROLES = ("lora_A", "lora_B", "bias", "norm", "head", "weight", "indices", "other")
INDICES = "indices"
"""The role of the indices of a sparse parameter's values: they are fed like parameters, but do not train."""
RESAMPLES = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
"""Filters to resize by, as Pillow names them."""
CHANNEL_ORDERS = ("RGB", "BGR")
TEXT_FIELDS = ("ids", "attention_mask", "type_ids", "decoder_ids")

MAX_IMAGE_SIDE = 2**14
_Side = Annotated[int, Check(f"pixels from 1 to {MAX_IMAGE_SIDE}", lambda side: 0 < side <= MAX_IMAGE_SIDE)]
_Samples = Annotated[int, Check("samples from 1 to 16,777,216", lambda samples: 0 < samples <= 2**24)]
_Frame = Annotated[int, Check("samples from 1 to 65,536", lambda samples: 0 < samples <= 2**16)]
_Resize = Annotated[
    tuple[int, ...], Check("at most two sizes", lambda sizes: len(sizes) <= 2 and min(sizes, default=1) > 0)
]


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: its SHA-256 and its size in bytes."""

    sha256: Sha256
    bytes: Natural


@dataclass(frozen=True)
class ListedFile(FileEntry):
    """A file in the manifest; a large one also has the hashes of its parts of 16 MiB."""

    parts: Annotated[tuple[Sha256, ...] | None, Mark.OMITTED] = None


@dataclass(frozen=True)
class Dimension:
    """Limits of a symbolic dimension; ``max=None`` sets no upper one."""

    min: Natural = 1
    max: int | None = None


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype and shape of a tensor; a ``str`` in the shape is a symbolic dimension."""

    name: str
    dtype: Annotated[str, one_of(DTYPES)]
    shape: Shape

    @property
    def size(self) -> int:
        """The number of elements; only for a tensor without symbolic dimensions."""
        return math.prod(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape; only for a tensor without symbolic dimensions."""
        return tuple(int(dim) for dim in self.shape)


@dataclass(frozen=True)
class LabelSpec(TensorSpec):
    """A label; for class labels also the number of ``classes`` and the label that is ignored."""

    classes: Annotated[int | None, Mark.OMITTED] = None
    ignore_index: Annotated[int | None, Mark.OMITTED] = None


@dataclass(frozen=True)
class ParameterSpec(TensorSpec):
    """A parameter of the adapter and its role."""

    role: Annotated[str, one_of(ROLES)] = "other"


@dataclass(frozen=True)
class FrozenSpec(TensorSpec):
    """A tensor of ``weights.bin``, in row-major order and little-endian. Equal ones may share their bytes.

    Attributes:
        bytes, offset: its range there.
        elements: number of weights that it encodes, if it is quantized.
    """

    dtype: str  # also one that numpy lacks, such as int4
    shape: Sizes
    bytes: Natural
    offset: Natural
    elements: Annotated[int | None, Mark.OPTIONAL] = None

    @property
    def numpy_dtype(self) -> np.dtype[np.generic] | None:
        """The dtype in numpy; ``None`` for one that numpy lacks."""
        return np.dtype(self.dtype) if self.dtype in DTYPES else None


@dataclass(frozen=True)
class SparseSpec:
    """A frozen tensor of which some elements train.

    Args:
        tensor: its name.
        shape: its shape.
        values: the parameter that is added to the elements.
        indices: the parameter with their positions in row-major order, ascending; -1 before they are picked.
        gradient: the result of ``select`` by which the device picks elements; ``None`` if they are picked already.
        batches: number of batches over which gradient magnitudes are summed.
    """

    tensor: str
    shape: Sizes
    values: str
    indices: str
    gradient: Annotated[str | None, Mark.OPTIONAL] = None
    batches: Natural = 1

    @property
    def size(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Bucket:
    """A flat gradient: the concatenation of its members' gradients, each in row-major order."""

    name: str
    size: int
    members: tuple[str, ...]
    decay: bool


@dataclass(frozen=True)
class LossSpec:
    """The loss as prepared: its kind and its settings."""

    kind: str
    settings: Annotated[Json, Mark.REST] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerSpec:
    """The optimizer: its kind, default learning rate, further settings, and its state, which starts as zeros."""

    kind: str
    lr: float
    settings: Annotated[Json, Mark.REST] = field(default_factory=dict)
    state: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True)
class ChatSpec:
    """The chat template of a tokenizer: Jinja's source, and the special tokens that it may name, as texts."""

    template: str
    tokens: dict[str, str]


@dataclass(frozen=True)
class TextSpec:
    """How raw text becomes inputs: ``fields`` maps an input to ``ids``, ``attention_mask`` or ``type_ids``.

    ``template`` is the text around a prompt of a causal language model, with ``{prompt}`` for the prompt; ``chat``
    renders conversations of several turns, where a runtime has Jinja. ``special`` has the ids of tokens that a task
    needs: ``mask``, ``decoder_start``, ``end``.
    """

    max_length: Natural
    pad_id: int
    fields: dict[str, Annotated[str, one_of(TEXT_FIELDS)]]
    template: Annotated[str | None, Mark.OPTIONAL] = None
    chat: Annotated[ChatSpec | None, Mark.OMITTED] = None
    special: Annotated[dict[str, int] | None, Mark.OMITTED] = None


@dataclass(frozen=True)
class ImageSpec:
    """How an image becomes an input: resized, cropped at its center to ``size``, scaled to 0..1 and normalized.

    Args:
        input: the input that is the image, ``[batch, channels, height, width]``.
        size: height and width of the input.
        channels: 1 or 3.
        mean, std: one value per channel, in ``channel_order``, for pixels from 0 to 1.
        resize: height and width, or one number for the shorter edge, which preserves the aspect ratio; ``()`` does not
            resize, ``None`` means ``size``. Smaller images are then padded to ``size`` with zeros.
        resample: the filter, by Pillow's name.
        channel_order: order of three channels.
        reduce_labels: whether 0 in a mask is no class, and class 0 is a 1 there.
    """

    input: str
    size: tuple[_Side, _Side]
    channels: Natural
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Annotated[_Resize | None, Mark.OPTIONAL] = None
    resample: Annotated[str, one_of(RESAMPLES)] = "bilinear"
    channel_order: Annotated[str, one_of(CHANNEL_ORDERS)] = "RGB"
    reduce_labels: Annotated[bool | None, Mark.OMITTED] = None


@dataclass(frozen=True)
class TableSpec:
    """How a row of a table becomes the only input: its columns in order, each minus ``mean`` and divided by ``std``."""

    columns: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class SpectrogramSpec:
    """How samples become the logarithm of their power in mel filters: Hann windows, Slaney's scale, as in Whisper.

    Args:
        samples: number of samples of a spectrogram; longer recordings are cut, shorter ones followed by zeros.
        frame: samples of a window, which is centered on its frame; the ends are reflected.
        hop: samples from a frame to the next.
        bins: number of filters.
        highest: frequency in Hz at which the last filter ends; the first begins at 0.
    """

    samples: _Samples
    frame: _Frame
    hop: _Frame
    bins: Annotated[int, Check("filters from 1 to 1,024", lambda bins: 0 < bins <= 1024)]
    highest: Annotated[float, Check("a frequency above 0", lambda highest: highest > 0)]

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.samples // self.hop


@dataclass(frozen=True)
class AudioSpec:
    """How a recording becomes an input: one channel of samples from -1 to 1, resampled, and perhaps normalized.

    Args:
        input: the input that is the recording: ``[batch, samples]``, where shorter ones are followed by zeros, or
            ``[batch, bins, frames]`` if there is a spectrogram.
        rate: samples per second.
        normalize: whether each recording is shifted and scaled to mean 0 and variance 1 (with 1e-7 added to it).
        delimiter: the class that stands for a space in texts, if classes are characters.
        spectrogram: how samples become the input, if it is not the samples.
        mask: the input that is 1 for the samples of each recording and 0 for zeros after it, ``[batch, samples]``.
    """

    input: str
    rate: Annotated[int, Check("samples per second from 1 to 1,000,000", lambda rate: 0 < rate <= 10**6)]
    normalize: bool = True
    delimiter: Annotated[str | None, Mark.OMITTED] = None
    spectrogram: Annotated[SpectrogramSpec | None, Mark.OMITTED] = None
    mask: Annotated[str | None, Mark.OMITTED] = None


@dataclass(frozen=True)
class Parts:
    """All parts of a manifest. Whether they fit one another is checked in ``manifest_checks``."""

    min_onnxruntime: str
    base_sha256: Sha256
    files: dict[str, ListedFile]
    dimensions: dict[str, Dimension]
    inputs: tuple[TensorSpec, ...]
    labels: tuple[LabelSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: tuple[ParameterSpec, ...]
    frozen: tuple[FrozenSpec, ...]
    buckets: tuple[Bucket, ...]
    loss: LossSpec
    optimizer: OptimizerSpec
    programs: Programs
    cache: Annotated[CacheEntry | None, Mark.OPTIONAL] = None
    task: Annotated[str | None, Mark.OMITTED] = None
    classes: Annotated[tuple[str, ...] | None, Mark.OPTIONAL] = None
    text: Annotated[TextSpec | None, Mark.OPTIONAL] = None
    image: Annotated[ImageSpec | None, Mark.OPTIONAL] = None
    table: Annotated[TableSpec | None, Mark.OMITTED] = None
    audio: Annotated[AudioSpec | None, Mark.OMITTED] = None
    memory: Annotated[MemorySpec | None, Mark.OPTIONAL] = None
    sparse: Annotated[tuple[SparseSpec, ...], Mark.OPTIONAL] = ()
    adapter: AdapterLayout = field(default_factory=AdapterLayout)
    generation: Annotated[GenerationSpec | None, Mark.OPTIONAL] = None
    provenance: Json = field(default_factory=dict)

    @property
    def trained(self) -> tuple[ParameterSpec, ...]:
        """The parameters that train: the members of buckets."""
        members = {name for bucket in self.buckets for name in bucket.members}
        return tuple(spec for spec in self.parameters if spec.name in members)

    @property
    def stored(self) -> tuple[FrozenSpec, ...]:
        """The frozen tensors without those whose bytes are stored under an earlier name."""
        first = {spec.offset: spec for spec in reversed(self.frozen)}
        return tuple(spec for spec in self.frozen if first[spec.offset] is spec)
