"""Check programs and frozen tensors as far as the manifest alone allows (sections 2 and 3 of the SPEC)."""

from __future__ import annotations

from edgepeft_runtime.bundle.programs import Accumulation, Call
from edgepeft_runtime.bundle.specs import Parts
from edgepeft_runtime.errors import BadManifest
from edgepeft_runtime.files.shapes import elements
from edgepeft_runtime.shown import quoted

WEIGHTS = "weights.bin"
ALIGNMENT = 4096
"""Offsets in ``weights.bin`` are multiples of a page, so that a tensor can be mapped."""


def check_programs(manifest: Parts) -> None:
    """Refuse programs that name unknown graphs or buckets, or that do not fit the rest; raises ``BadManifest``."""
    programs = manifest.programs.by_name()
    for name, calls in programs.items():
        for index, call in enumerate(calls):
            _check_call(manifest, f"programs: {name}[{index}]", call, adds=name == "train")
    added = {item.bucket for call in manifest.programs.train for item in call.accumulate}
    for bucket in manifest.buckets:
        if bucket.name not in added:
            raise BadManifest("No call of train adds to a bucket.", f"bucket: {quoted(bucket.name)}")
    if any(spec.gradient is not None for spec in manifest.sparse) != ("select" in programs):
        raise BadManifest("A bundle must have both sparse gradients and the program select, or neither.", "programs")
    cached = manifest.generation is not None and bool(manifest.generation.cache)
    if cached != ("generate" in programs):
        raise BadManifest("A bundle must have both a cache and the program generate, or neither.", "programs")


def _check_call(manifest: Parts, where: str, call: Call, *, adds: bool) -> None:
    # Only files named so are checked as graphs.
    if call.graph not in manifest.files or not call.graph.endswith(".onnx"):
        raise BadManifest("A program names a graph that is not among the files.", f"{where}: {quoted(call.graph)}")
    if call.accumulate and not adds:
        raise BadManifest("Only the program train has accumulators.", where)
    for item in call.accumulate:
        _check_accumulation(manifest, where, item)


def _check_accumulation(manifest: Parts, where: str, item: Accumulation) -> None:
    sizes = {bucket.name: bucket.size for bucket in manifest.buckets}
    if item.bucket not in sizes:
        raise BadManifest("A program names a bucket that there is not.", f"{where}: {quoted(item.bucket)}")
    if item.offset >= sizes[item.bucket]:
        facts = f"{where}: {item.offset} in {quoted(item.bucket)}, which has {sizes[item.bucket]} elements"
        raise BadManifest("A program adds a gradient outside its bucket.", facts)


def check_frozen(manifest: Parts) -> None:
    """Refuse frozen tensors that are not in ``weights.bin``; raises ``BadManifest``."""
    entry = manifest.files.get(WEIGHTS)
    size = 0 if entry is None else entry.bytes
    for spec in manifest.frozen:
        if spec.offset % ALIGNMENT or spec.offset + spec.bytes > size:
            facts = f"{quoted(spec.name)}: {spec.bytes} bytes at {spec.offset} of {size}"
            raise BadManifest(f"A frozen tensor is not at a multiple of {ALIGNMENT} in {WEIGHTS}.", facts)
        count = elements(spec.shape)
        if count is None or (spec.numpy_dtype is not None and count * spec.numpy_dtype.itemsize != spec.bytes):
            facts = f"{quoted(spec.name)}: {quoted(spec.dtype)} {list(spec.shape)} of {spec.bytes} bytes"
            raise BadManifest("The size of a frozen tensor does not match its shape.", facts)
