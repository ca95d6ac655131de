"""Check that the parts of a manifest are consistent (section 2 of the SPEC)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from edgepeft_runtime.bundle.adapter_layout import check_adapter
from edgepeft_runtime.bundle.program_checks import check_frozen, check_programs
from edgepeft_runtime.bundle.specs import INDICES, Parts
from edgepeft_runtime.errors import BadManifest
from edgepeft_runtime.files.hashing import PART
from edgepeft_runtime.files.shapes import MAX_AXES, elements
from edgepeft_runtime.shown import quoted

MAX_STATE = 8
"""Largest ratio of elements of the optimizer's state to trainable ones: state is allocated from its shapes alone."""


def check(manifest: Parts) -> None:
    """Refuse a manifest with parts that contradict one another; raises ``BundleError`` (``bad-manifest``)."""
    _check_names(manifest)
    _check_shapes(manifest)
    _check_sizes(manifest)
    _check_memory(manifest)
    _check_buckets(manifest)
    _check_sparse(manifest)
    _check_layout(manifest)
    _check_generation(manifest)
    _check_parts(manifest)
    check_frozen(manifest)
    check_programs(manifest)
    _check_image(manifest)
    _check_table(manifest)


def _check_names(manifest: Parts) -> None:
    fed = [*manifest.inputs, *manifest.labels, *manifest.parameters, *manifest.frozen, *manifest.optimizer.state]
    _unique("fed to the graphs", [spec.name for spec in fed] + [bucket.name for bucket in manifest.buckets])
    _unique("of the outputs", (spec.name for spec in manifest.outputs))
    for what in ("inputs", "outputs", "parameters", "buckets"):
        if not getattr(manifest, what):
            raise BadManifest(f"The manifest lists no {what}.", f"manifest.json: {what}")


def _check_parts(manifest: Parts) -> None:
    for name, entry in manifest.files.items():
        count = -(-entry.bytes // PART)
        if entry.parts is not None and len(entry.parts) != count:
            facts = f"{quoted(name)}: {len(entry.parts)} hashes for {count} parts"
            raise BadManifest(f"A file must have one hash for each part of {PART} bytes.", facts)


def _unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadManifest(f"Two tensors {what} have the same name.", f"name: {quoted(name)}")
        seen.add(name)


def _check_shapes(manifest: Parts) -> None:
    for spec in (*manifest.inputs, *manifest.labels):
        for dim in spec.shape:
            if isinstance(dim, str) and dim not in manifest.dimensions:
                raise BadManifest(
                    "A symbolic dimension is not declared.",
                    f"{quoted(dim)} of {quoted(spec.name)} is not in dimensions",
                )
    for tensor in (*manifest.parameters, *manifest.optimizer.state):
        if not all(isinstance(dim, int) for dim in tensor.shape):
            raise BadManifest(
                "A parameter or state has a symbolic dimension.", f"{quoted(tensor.name)}: {list(tensor.shape)}"
            )


def _check_sizes(manifest: Parts) -> None:
    """Refuse tensors with more elements than can be counted, and more optimizer state than the parameters need."""
    sizes = [spec.sizes for spec in (*manifest.parameters, *manifest.optimizer.state)]
    for shape in (*sizes, *(spec.shape for spec in manifest.sparse)):
        if elements(shape) is None:
            raise BadManifest("A tensor has too many elements.", f"shape {quoted(list(shape))}")
    state = sum(spec.size for spec in manifest.optimizer.state)
    trained = sum(spec.size for spec in manifest.parameters)
    if state > MAX_STATE * trained:
        facts = f"{state} elements for {trained} that train; at most {MAX_STATE} for each are allowed"
        raise BadManifest("The optimizer's state is too large.", facts)


def _check_memory(manifest: Parts) -> None:
    for moment in manifest.memory.activations if manifest.memory is not None else ():
        for product in moment:
            unknown = [name for name in product.split("*") if product and name not in manifest.dimensions]
            if unknown or product.count("*") >= MAX_AXES:
                raise BadManifest(
                    "The sizes of activations must be products of dimensions.", f"found {quoted(product)}"
                )


def _check_buckets(manifest: Parts) -> None:
    sizes = {spec.name: spec.size for spec in manifest.parameters if spec.role != INDICES}
    members = [name for bucket in manifest.buckets for name in bucket.members]
    odd = sorted(name for name, count in Counter(members).items() if name not in sizes or count > 1)
    if odd or not members:
        message = "Each member of a bucket must be a parameter that is in no other bucket."
        raise BadManifest(message, f"wrong: {', '.join(odd)}" if odd else "no bucket has a member")
    for bucket in manifest.buckets:
        total = sum(sizes[name] for name in bucket.members)
        if bucket.size != total:
            raise BadManifest(
                "The size of a bucket is not the sum of its members' sizes.",
                f"{quoted(bucket.name)}: {bucket.size}, not {total}",
            )


def _check_sparse(manifest: Parts) -> None:
    shapes = {spec.name: (spec.dtype, spec.shape, spec.role == INDICES) for spec in manifest.parameters}
    for spec in manifest.sparse:
        values, indices = shapes.get(spec.values), shapes.get(spec.indices)
        if values is None or indices is None or indices[0] != "int32" or not indices[2] or values[1] != indices[1]:
            raise BadManifest(
                "A sparse tensor needs values and indices of equal length.", f"tensor: {quoted(spec.tensor)}"
            )
    described = {spec.indices for spec in manifest.sparse}
    for parameter in manifest.parameters:
        if (parameter.role == INDICES) != (parameter.name in described):
            raise BadManifest("Indices must belong to a sparse tensor.", f"parameter: {quoted(parameter.name)}")


def _check_layout(manifest: Parts) -> None:
    floats = {spec.name: (spec.role, spec.sizes) for spec in manifest.parameters if spec.role != INDICES}
    check_adapter(manifest.adapter, floats, {name for bucket in manifest.buckets for name in bucket.members})


def _check_generation(manifest: Parts) -> None:
    spec = manifest.generation
    if spec is None:
        return
    inputs = {tensor.name for tensor in manifest.inputs}
    if {spec.ids, *filter(None, [spec.attention_mask])} != inputs or (spec.cache and spec.attention_mask is None):
        raise BadManifest(
            "Generation must feed all inputs, and a cache needs an attention mask.",
            f"inputs: {', '.join(sorted(inputs))}",
        )


def _check_image(manifest: Parts) -> None:
    spec = manifest.image
    if spec is not None and not len(spec.mean) == len(spec.std) == spec.channels:
        raise BadManifest(
            "An image needs a mean and a standard deviation for each channel.", f"channels: {spec.channels}"
        )


def _check_table(manifest: Parts) -> None:
    spec, width = manifest.table, manifest.inputs[0].shape[1:]
    if spec is None:
        return
    fits = len(spec.mean) == len(spec.std) == len(spec.columns) == len(set(spec.columns))
    if not fits or min(spec.std, default=0) <= 0 or len(manifest.inputs) != 1 or width != (len(spec.columns),):
        raise BadManifest(
            "A table needs a name, a mean and a standard deviation above 0 for each element of the only input.",
            f"{len(spec.columns)} columns for the shape {quoted(list(manifest.inputs[0].shape))}",
        )
