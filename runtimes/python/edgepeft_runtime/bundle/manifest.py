"""The manifest of a bundle as frozen dataclasses: everything a runtime needs to know (section 2 of the SPEC)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from edgepeft_runtime.bundle import manifest_checks
from edgepeft_runtime.bundle.activation_sizes import MemorySpec
from edgepeft_runtime.bundle.adapter_layout import AdapterLayout
from edgepeft_runtime.bundle.generation_spec import GenerationSpec
from edgepeft_runtime.bundle.manifest_checks import check
from edgepeft_runtime.errors import BadManifest, UnknownBundleVersion
from edgepeft_runtime.files import strict_json
from edgepeft_runtime.files.fields import Fields
from edgepeft_runtime.shown import quoted

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 2**23
FORMAT = "edgepeft-bundle"
VERSION = 2
DTYPES = ("float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool")
ROLES = ("lora_A", "lora_B", "bias", "norm", "head", "weight", "indices", "other")
INDICES = manifest_checks.INDICES
"""The role of integers that say where a parameter's values belong: they are fed as parameters are, and do not train."""
LOSSES = ("cross_entropy", "causal_lm", "mse", "l1", "bce_with_logits", "custom")
RESAMPLES = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
"""Filters to resize by, as Pillow names them."""
CHANNEL_ORDERS = ("RGB", "BGR")
TEXT_FIELDS = ("ids", "attention_mask", "type_ids")

MAX_IMAGE_SIDE = 2**14
Json = dict[str, Any]


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: its SHA-256 and its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Dimension:
    """How large a symbolic dimension may be; ``max=None`` sets no limit."""

    min: int = 1
    max: int | None = None


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype and shape of a tensor; a ``str`` in the shape is a symbolic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def size(self) -> int:
        """The number of elements; only for a tensor without symbolic dimensions."""
        return math.prod(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape; only for a tensor without symbolic dimensions."""
        return tuple(int(dim) for dim in self.shape)

    @classmethod
    def parse(cls, fields: Fields) -> TensorSpec:
        """Read the fields of a tensor."""
        return cls(*_tensor(fields))


@dataclass(frozen=True)
class LabelSpec(TensorSpec):
    """A label: class labels carry the number of ``classes`` and the label that does not count."""

    classes: int | None = None
    ignore_index: int | None = None

    @classmethod
    def parse(cls, fields: Fields) -> LabelSpec:
        """Read the fields of a label."""
        return cls(*_tensor(fields), fields.optional("classes", int), fields.optional("ignore_index", int))


@dataclass(frozen=True)
class ParameterSpec(TensorSpec):
    """A tensor that trains, and the part it plays."""

    role: str = "other"

    @classmethod
    def parse(cls, fields: Fields) -> ParameterSpec:
        """Read the fields of a parameter."""
        return cls(*_tensor(fields), fields.one_of("role", ROLES))


@dataclass(frozen=True)
class FrozenSpec(TensorSpec):
    """A tensor of ``weights.bin``, the bytes it takes there, and of how many numbers it is the packed form."""

    bytes: int = 0
    elements: int | None = None

    @classmethod
    def parse(cls, fields: Fields) -> FrozenSpec:
        """Read the fields of a frozen tensor; its dtype may be one that numpy lacks, as ``int4``."""
        tensor = fields.take("name", str), fields.take("dtype", str), fields.shape()
        return cls(*tensor, fields.take("bytes", int), fields.optional("elements", int))


@dataclass(frozen=True)
class SparseSpec:
    """A frozen tensor some of whose elements train.

    Args:
        tensor: its name, and ``shape`` its shape.
        values: the parameter that is added to the elements.
        indices: the parameter with their positions in row-major order, ascending; -1 before they are picked.
        gradient: the output of ``select.onnx`` by which the device picks; ``None``: they are picked already.
        batches: over how many batches the sizes of the gradient are added up.
    """

    tensor: str
    shape: tuple[int, ...]
    values: str
    indices: str
    gradient: str | None
    batches: int

    @classmethod
    def parse(cls, fields: Fields) -> SparseSpec:
        """Read the fields of a sparse tensor."""
        shape = fields.shape()
        sizes = tuple(dim for dim in shape if isinstance(dim, int))
        if sizes != shape:
            raise fields.wrong("shape", "a list of sizes", shape)
        names = fields.take("values", str), fields.take("indices", str), fields.optional("gradient", str)
        return cls(fields.take("tensor", str), sizes, *names, fields.natural("batches"))

    @property
    def size(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Bucket:
    """A flat gradient: its members lie in it one after another, each in row-major order."""

    name: str
    size: int
    members: tuple[str, ...]
    decay: bool

    @classmethod
    def parse(cls, fields: Fields) -> Bucket:
        """Read the fields of a bucket."""
        members = tuple(fields.texts("members"))
        return cls(fields.take("name", str), fields.take("size", int), members, fields.take("decay", bool))


@dataclass(frozen=True)
class LossSpec:
    """The loss as prepared: its kind, and what else describes it."""

    kind: str
    settings: Json = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerSpec:
    """The optimizer: its kind, default learning rate, further settings, and the state it keeps (starts as zeros)."""

    kind: str
    lr: float
    settings: Json = field(default_factory=dict)
    state: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True)
class TextSpec:
    """How raw text becomes inputs: ``fields`` maps an input to ``ids``, ``attention_mask`` or ``type_ids``.

    ``template`` is what a prompt of a causal language model is put into, ``{prompt}`` in its place.
    """

    max_length: int
    pad_id: int
    fields: dict[str, str]
    template: str | None = None


@dataclass(frozen=True)
class ImageSpec:
    """How an image becomes an input: resized, cropped at its center to ``size``, scaled to 0..1 and normalized.

    Args:
        input: the input that takes it, ``[batch, channels, height, width]``.
        size: height and width of the input.
        channels: 1 or 3.
        mean, std: one value per channel, in ``channel_order``, of values from 0 to 1.
        resize: height and width, or one number for the shorter edge (the shape stays); ``()`` does not resize, ``None``
            means ``size``. What is smaller than ``size`` then gets a border of zeros.
        resample: the filter, by Pillow's name.
        channel_order: of three channels.
    """

    input: str
    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: tuple[int, ...] | None = None
    resample: str = "bilinear"
    channel_order: str = "RGB"


@dataclass(frozen=True)
class Manifest:
    """A whole manifest; it cannot be made with parts that contradict one another (:class:`BundleError`)."""

    min_onnxruntime: str
    base_sha256: str
    files: dict[str, FileEntry]
    dimensions: dict[str, Dimension]
    inputs: tuple[TensorSpec, ...]
    labels: tuple[LabelSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: tuple[ParameterSpec, ...]
    frozen: tuple[FrozenSpec, ...]
    buckets: tuple[Bucket, ...]
    loss: LossSpec
    optimizer: OptimizerSpec
    classes: tuple[str, ...] | None = None
    text: TextSpec | None = None
    image: ImageSpec | None = None
    memory: MemorySpec | None = None
    sparse: tuple[SparseSpec, ...] = ()
    adapter: AdapterLayout = field(default_factory=AdapterLayout)
    generation: GenerationSpec | None = None
    provenance: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)

    @property
    def trained(self) -> tuple[ParameterSpec, ...]:
        """The parameters that train: the members of buckets."""
        members = {name for bucket in self.buckets for name in bucket.members}
        return tuple(spec for spec in self.parameters if spec.name in members)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read the text of a ``manifest.json``."""
        try:
            value = strict_json.loads(text)
        except ValueError as failure:
            raise BadManifest("manifest.json is not JSON.", str(failure)) from None
        return cls.from_dict(value)

    def to_json(self) -> str:
        """The text of ``manifest.json``; :meth:`from_json` gives an equal manifest back."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, value: Any) -> Manifest:
        """Read a manifest from plain JSON values."""
        fields = Fields(value, "manifest.json")
        _check_format(fields)
        manifest = cls(
            min_onnxruntime=fields.take("min_onnxruntime", str),
            base_sha256=fields.sha256("base_sha256"),
            files={name: FileEntry(f.sha256("sha256"), f.natural("bytes")) for name, f in fields.map_of("files")},
            dimensions={
                name: Dimension(f.natural("min"), f.take("max", int, None)) for name, f in fields.map_of("dimensions")
            },
            inputs=tuple(TensorSpec.parse(f) for f in fields.list_of("inputs")),
            labels=tuple(LabelSpec.parse(f) for f in fields.list_of("labels")),
            outputs=tuple(TensorSpec.parse(f) for f in fields.list_of("outputs")),
            parameters=tuple(ParameterSpec.parse(f) for f in fields.list_of("parameters")),
            frozen=tuple(FrozenSpec.parse(f) for f in fields.list_of("frozen")),
            buckets=tuple(Bucket.parse(f) for f in fields.list_of("buckets")),
            loss=_loss(fields.part("loss")),
            optimizer=_optimizer(fields.part("optimizer")),
            classes=None if fields.is_null("classes") else tuple(fields.texts("classes")),
            text=None if fields.is_null("text") else _text(fields.part("text")),
            image=None if fields.is_null("image") else _image(fields.part("image")),
            memory=None if fields.is_null("memory") else _memory(fields.part("memory")),
            sparse=() if fields.is_null("sparse") else tuple(SparseSpec.parse(f) for f in fields.list_of("sparse")),
            adapter=AdapterLayout.parse(fields.part("adapter")),
            generation=None if fields.is_null("generation") else GenerationSpec.parse(fields.part("generation")),
            provenance=fields.take("provenance", dict),
        )
        fields.finish()
        return manifest

    def to_dict(self) -> Json:
        """The manifest as plain JSON values, in the order of the SPEC."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "min_onnxruntime": self.min_onnxruntime,
            "base_sha256": self.base_sha256,
            "files": {name: vars(entry).copy() for name, entry in self.files.items()},
            "dimensions": {name: vars(dimension).copy() for name, dimension in self.dimensions.items()},
            "inputs": [_listed(spec) for spec in self.inputs],
            "labels": [_label(spec) for spec in self.labels],
            "outputs": [_listed(spec) for spec in self.outputs],
            "parameters": [_listed(spec) for spec in self.parameters],
            "frozen": [_listed(spec) for spec in self.frozen],
            "buckets": [_listed(bucket) for bucket in self.buckets],
            "loss": {"kind": self.loss.kind, **self.loss.settings},
            "optimizer": {
                "kind": self.optimizer.kind,
                "lr": self.optimizer.lr,
                **self.optimizer.settings,
                "state": [_listed(spec) for spec in self.optimizer.state],
            },
            "classes": None if self.classes is None else list(self.classes),
            "text": None if self.text is None else _listed(self.text),
            "image": None if self.image is None else _listed(self.image),
            "memory": None if self.memory is None else _listed(self.memory),
            "sparse": [_listed(spec) for spec in self.sparse],
            "adapter": self.adapter.to_dict(),
            "generation": None if self.generation is None else self.generation.to_dict(),
            "provenance": self.provenance,
        }


def _listed(value: Any) -> Json:
    """A flat dataclass as JSON: tuples become lists."""
    return {name: list(item) if isinstance(item, tuple) else item for name, item in vars(value).items()}


def _label(spec: LabelSpec) -> Json:
    value = _listed(spec)
    if spec.classes is None:
        del value["classes"], value["ignore_index"]
    return value


def _tensor(fields: Fields) -> tuple[str, str, tuple[int | str, ...]]:
    return fields.take("name", str), fields.one_of("dtype", DTYPES), fields.shape()


def _loss(fields: Fields) -> LossSpec:
    return LossSpec(fields.one_of("kind", LOSSES), fields.rest())


def _optimizer(fields: Fields) -> OptimizerSpec:
    kind, lr = fields.take("kind", str), fields.number("lr")
    state = tuple(TensorSpec.parse(f) for f in fields.list_of("state"))
    return OptimizerSpec(kind, lr, fields.rest(), state)


def _memory(fields: Fields) -> MemorySpec:
    spec = MemorySpec.parse(fields)
    fields.finish()
    return spec


def _text(fields: Fields) -> TextSpec:
    length, pad, names = fields.natural("max_length"), fields.take("pad_id", int), fields.take("fields", dict)
    if any(kind not in TEXT_FIELDS for kind in names.values()):
        raise BadManifest(
            "manifest.json: text.fields maps an input to something unknown.", f"{quoted(names)}; known: {TEXT_FIELDS}"
        )
    template = fields.optional("template", str)
    fields.finish()
    return TextSpec(length, pad, names, template)


def _image(fields: Fields) -> ImageSpec:
    sides = fields.numbers("size", 2)
    height, width = sides
    if not all(type(side) is int and 0 < side <= MAX_IMAGE_SIDE for side in sides):
        raise fields.wrong("size", f"two numbers of pixels from 1 to {MAX_IMAGE_SIDE}", list(sides))
    channels = fields.natural("channels")
    mean, std = fields.numbers("mean", channels), fields.numbers("std", channels)
    name = fields.take("input", str)
    resize = _resize(fields)
    how = fields.one_of("resample", RESAMPLES), fields.one_of("channel_order", CHANNEL_ORDERS)
    fields.finish()
    return ImageSpec(name, (int(height), int(width)), channels, mean, std, resize, *how)


def _resize(fields: Fields) -> tuple[int, ...] | None:
    if fields.is_null("resize"):
        return None
    found = fields.take("resize", list)
    if len(found) > 2 or not all(type(size) is int and size > 0 for size in found):
        raise fields.wrong("resize", "at most two sizes", found)
    return tuple(found)


def _check_format(fields: Fields) -> None:
    found = fields.take("format", str)
    if found != FORMAT:
        raise BadManifest(
            "This directory holds no edgepeft bundle.", f"format: expected {FORMAT!r}, found {quoted(found)}"
        )
    version = fields.take("version", int)
    if version != VERSION:
        raise UnknownBundleVersion(
            f"The bundle is of version {version}; this runtime knows version {VERSION}.",
            context="manifest.json: version",
            hint="update edgepeft on this machine, or prepare the bundle with the edgepeft that this machine has.",
        )
