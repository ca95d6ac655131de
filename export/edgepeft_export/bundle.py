"""Writes a bundle: graphs, frozen tensors once, adapter, manifest (``runtimes/SPEC.md``, sections 1 and 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from edgepeft_export.compile import Compiled
from edgepeft_export.errors import BundleExists, NotABundle
from edgepeft_export.forward.graph import SparseTensor
from edgepeft_export.graph.shapes import Dim, dims_of, dtype_of
from edgepeft_export.losses import Loss
from edgepeft_export.opset import MIN_ONNXRUNTIME
from edgepeft_export.optimizer_graph import state_names
from edgepeft_export.optimizers import Optimizer
from edgepeft_export.quantize import QuantizedTensor
from edgepeft_export.selection import gradient_name
from edgepeft_export.weights import WeightsFile
from edgepeft_runtime.bundle import specs as spec
from edgepeft_runtime.bundle.activation_sizes import MemorySpec
from edgepeft_runtime.bundle.folder import listed_files
from edgepeft_runtime.bundle.generation_spec import GenerationSpec
from edgepeft_runtime.bundle.graphfile import checked_graph
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.programs import CacheEntry, Programs
from edgepeft_runtime.files.durable import writing
from edgepeft_runtime.files.schema import Json
from edgepeft_runtime.files.staging import check_folder, recover_directory, replace_directory
from edgepeft_runtime.files.tensorfile import write_tensors


@dataclass(frozen=True)
class Extras:
    """The parts of a bundle other than its graphs.

    Attributes:
        dimensions: limits of symbolic dimensions, such as the number of learned positions.
        task: what kind of model it is, which decides how data is read.
        classes: names of the classes, by label.
        text, image, table: how raw data is converted to inputs.
        micro_batch: examples that the graph processes at a time, to stay within a memory budget.
        generation: how a causal language model continues a text.
        files: further files to carry, by their name in the bundle.
        quantized: the float tensors that quantized tensors represent, by name.
        provenance: how it was prepared; JSON.
    """

    dimensions: Mapping[str, spec.Dimension] = field(default_factory=dict)
    task: str | None = None
    classes: tuple[str, ...] | None = None
    text: spec.TextSpec | None = None
    image: spec.ImageSpec | None = None
    audio: spec.AudioSpec | None = None
    table: spec.TableSpec | None = None
    micro_batch: int | None = None
    generation: GenerationSpec | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    quantized: Mapping[str, QuantizedTensor] = field(default_factory=dict)
    provenance: Json = field(default_factory=dict)


def write_bundle(
    compiled: Compiled,
    loss: Loss,
    optimizer: Optimizer,
    out: str | Path,
    extras: Extras | None = None,
    *,
    overwrite: bool = False,
    complete: Callable[[Path], object] | None = None,
) -> Path:
    """Write a bundle at ``out``, whole or not at all.

    Args:
        complete: called with the folder of the new bundle before it is published. It may add files or raise.

    Raises:
        BundleError: ``out`` exists and ``overwrite`` is not given, is no bundle, or cannot be written.
    """
    out = Path(out)
    check_target(out, overwrite)
    with replace_directory(out) as folder:
        _fill(folder, compiled, loss, optimizer, extras or Extras())
        if complete is not None:
            complete(folder)
    return out


def check_target(out: Path, overwrite: bool) -> None:
    """Refuse a path where something else exists, before any work is done."""
    with writing(out):
        recover_directory(out)
    if not out.exists():
        return
    is_bundle = (out / "manifest.json").is_file()
    if not is_bundle and not (out.is_dir() and not any(out.iterdir())):
        raise NotABundle(
            f"{out} exists and is no bundle.",
            context=None,
            hint="choose a path that does not exist yet.",
        )
    if is_bundle and not overwrite:
        raise BundleExists(
            f"There is a bundle at {out} already.",
            context=None,
            hint="choose another path, or allow overwriting (overwrite=True, --overwrite).",
        )
    check_folder(out)


def _fill(folder: Path, compiled: Compiled, loss: Loss, optimizer: Optimizer, extras: Extras) -> None:
    with WeightsFile(folder / "weights.bin") as weights:
        for name, tensor in compiled.bound.items():
            weights.store(name, tensor)
        for name, model in compiled.graphs.items():
            _write_graph(weights.externalize(model), folder / f"{name}.onnx")
    write_tensors(folder / "adapter.safetensors", compiled.adapter)
    for name, content in extras.files.items():
        (folder / name).write_bytes(content)
    manifest = _manifest(compiled, loss, optimizer, extras, listed_files(folder), weights)
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")


def _write_graph(model: ir.Model, path: Path) -> None:
    content = ir.to_proto(model).SerializeToString(deterministic=True)
    checked_graph(content)  # devices also refuse graphs that the checker accepts, such as a Loop without a bound
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    onnx.checker.check_model(str(path), full_check=False)


def _manifest(
    compiled: Compiled,
    loss: Loss,
    optimizer: Optimizer,
    extras: Extras,
    files: dict[str, spec.ListedFile],
    weights: WeightsFile,
) -> Manifest:
    inputs = tuple(_tensor(value) for value in compiled.inputs)
    labels = tuple(
        spec.LabelSpec(x.name, x.dtype.numpy().name, _shape(x.shape, x.name), x.classes, x.ignore_index)
        for x in compiled.labels
    )
    symbols = {dim for tensor in (*inputs, *labels) for dim in tensor.shape if isinstance(dim, str)}
    settings = {name: value for name, value in optimizer.values().items() if name != "lr"}
    state = [
        spec.TensorSpec(name, "float32", (bucket.size,))
        for bucket in compiled.buckets
        for name in state_names(optimizer, bucket)
    ]
    return Manifest(
        min_onnxruntime=MIN_ONNXRUNTIME,
        base_sha256=compiled.base_sha256,
        files=files,
        dimensions={name: extras.dimensions.get(name, spec.Dimension()) for name in sorted(symbols)},
        inputs=inputs,
        labels=labels,
        outputs=tuple(_tensor(value) for value in compiled.outputs),
        parameters=_parameters(compiled),
        sparse=tuple(_sparse(part) for part in compiled.sparse),
        frozen=tuple(_frozen(entry, extras.quantized.get(entry.name)) for entry in weights.entries),
        buckets=tuple(spec.Bucket(b.name, b.size, b.members, b.decay) for b in compiled.buckets),
        loss=spec.LossSpec(loss.name, _json(loss.values())),
        optimizer=spec.OptimizerSpec(optimizer.name, optimizer.lr, _json(settings), tuple(state)),
        programs=Programs(**compiled.programs),
        cache=None if compiled.cache is None else CacheEntry(compiled.cache),
        task=extras.task,
        classes=extras.classes,
        text=extras.text,
        image=extras.image,
        audio=extras.audio,
        table=extras.table,
        memory=MemorySpec(compiled.activations, extras.micro_batch),
        adapter=compiled.layout,
        generation=extras.generation,
        provenance=dict(extras.provenance),
    )


def _parameters(compiled: Compiled) -> tuple[spec.ParameterSpec, ...]:
    return tuple(
        spec.ParameterSpec(name, array.dtype.name, array.shape, compiled.roles[name])
        for name, array in compiled.adapter.items()
    )


def _sparse(part: SparseTensor) -> spec.SparseSpec:
    gradient = gradient_name(part) if part.initial_indices[0] < 0 else None
    return spec.SparseSpec(part.tensor, part.shape, part.values, part.indices, gradient, part.batches)


def _frozen(entry: spec.FrozenSpec, quantized: QuantizedTensor | None) -> spec.FrozenSpec:
    return entry if quantized is None else replace(entry, elements=quantized.elements)


def _tensor(value: ir.Value) -> spec.TensorSpec:
    name = str(value.name)
    return spec.TensorSpec(name, dtype_of(value).numpy().name, _shape(dims_of(value), name))


def _shape(dims: list[Dim] | tuple[Dim, ...], name: str) -> tuple[int | str, ...]:
    """Dimensions for the manifest. One without a name gets its own."""
    return tuple(f"{name}_{axis}" if dim is None else dim for axis, dim in enumerate(dims))


def _json(settings: Json) -> Json:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
