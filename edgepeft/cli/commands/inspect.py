"""``edgepeft inspect``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepeft.cli.options import bundle_argument, sizes
from edgepeft.cli.screen.output import json_option
from edgepeft_runtime.figures import size

if TYPE_CHECKING:
    from edgepeft_runtime.bundle.bundle import Bundle
    from edgepeft_runtime.bundle.specs import TensorSpec
    from edgepeft_runtime.files.schema import Json


@click.command("inspect")
@bundle_argument
@json_option
@click.option("--tensors", is_flag=True, help="List every tensor with its size.")
@click.option(
    "--sizes",
    "wanted",
    metavar="NAME=SIZE,…",
    callback=sizes,
    help="Predict the memory of a train step at these sizes (batch=8,sequence=64), from steps run here.",
)
def command(bundle: Path, as_json: bool, tensors: bool, wanted: dict[str, int] | None) -> None:
    """Show the contents of BUNDLE: inputs, trainable and frozen tensors, sizes. Every file is verified."""
    from edgepeft_runtime.bundle.bundle import Bundle

    opened = Bundle.open(bundle)
    summary = {**_summary(opened), **_predicted(opened, wanted)}
    if as_json:
        click.echo(json.dumps({**summary, "manifest": opened.manifest.to_dict()}, ensure_ascii=False, indent=2))
        return
    _print(opened, summary)
    if tensors:
        _print_tensors(opened)


def _predicted(bundle: Bundle, sizes: dict[str, int] | None) -> Json:
    """Return the peak memory of training, if sizes are given, and the part that does not grow with them."""
    if sizes is None:
        return {}
    from edgepeft_runtime.train.memory.prediction import predict

    prediction = predict(bundle, sizes)
    peak = prediction.peak(sizes)
    of_any_size = {"resident_bytes": int(prediction.resident)}
    return {"sizes": sizes, "anonymous_bytes": peak.anonymous, "file_bytes": peak.file, **of_any_size}


def _print_tensors(bundle: Bundle) -> None:
    click.echo("trainable tensors:")
    for spec in bundle.manifest.parameters:
        click.echo(f"  {spec.role:7} {_tensor(spec)}")
    click.echo("frozen tensors: stored bytes, bytes as fp32, name, and the name under which its bytes are listed first")
    first = {spec.offset: spec.name for spec in bundle.manifest.stored}
    for frozen in bundle.manifest.frozen:
        shared = "" if first[frozen.offset] == frozen.name else f" = {first[frozen.offset]}"
        as_fp32 = 4 * (frozen.elements or frozen.size)
        click.echo(f"  {size(frozen.bytes):>9} {size(as_fp32):>9} {_tensor(frozen)}{shared}")


def _summary(bundle: Bundle) -> Json:
    """Return counts and sizes, in elements and bytes."""
    import numpy as np

    manifest = bundle.manifest
    trainable = sum(spec.size * np.dtype(spec.dtype).itemsize for spec in manifest.parameters)
    kept = 4 * sum(bucket.size for bucket in manifest.buckets) + 4 * sum(spec.size for spec in manifest.optimizer.state)
    frozen = sum(spec.bytes for spec in manifest.stored)
    by_dtype: Counter[str] = Counter()
    for spec in manifest.stored:
        by_dtype[spec.dtype] += spec.bytes
    # A matrix that is stored in two layouts is one tensor.
    quantized = {spec.name.removesuffix(".transposed"): spec.elements for spec in manifest.stored if spec.elements}
    return {
        "bundle": str(bundle.path),
        "base_sha256": bundle.base_sha256,
        "adapter_sha256": bundle.adapter_sha256,
        "trainable_elements": sum(spec.size for spec in manifest.parameters),
        "trainable_bytes": trainable,
        "frozen_bytes": frozen,
        "frozen_bytes_by_dtype": dict(by_dtype),
        "quantized_bytes": sum(spec.bytes for spec in manifest.stored if spec.elements),
        "quantized_bytes_as_fp32": 4 * sum(quantized.values()),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "training_bytes": frozen + trainable + kept,
    }


def _print(bundle: Bundle, summary: Json) -> None:
    manifest = bundle.manifest
    roles = Counter(spec.role for spec in manifest.parameters)
    by_dtype = ", ".join(f"{dtype} {size(count)}" for dtype, count in summary["frozen_bytes_by_dtype"].items())
    rows = {
        "bundle": f"{bundle.path} ({size(summary['bytes'])}, onnxruntime >= {manifest.min_onnxruntime})",
        "base": bundle.base_sha256,
        "adapter": bundle.adapter_sha256,
        "method": _method(manifest.provenance),
        "inputs": ", ".join(map(_tensor, manifest.inputs)),
        "labels": ", ".join(map(_tensor, manifest.labels)),
        "outputs": ", ".join(map(_tensor, manifest.outputs)),
        "classes": ", ".join(manifest.classes or ()),
        "text": f"up to {manifest.text.max_length} tokens" if manifest.text else "",
        "image": f"{manifest.image.size[0]} x {manifest.image.size[1]}, {manifest.image.channels} channels"
        if manifest.image
        else "",
        "loss": manifest.loss.kind,
        "optimizer": f"{manifest.optimizer.kind}, lr {manifest.optimizer.lr:g}",
        "trains": f"{summary['trainable_elements']:,} elements, {size(summary['trainable_bytes'])} "
        f"({', '.join(f'{count} {role}' for role, count in roles.items())})",
        "frozen": f"{size(summary['frozen_bytes'])}{f' ({by_dtype})' if by_dtype else ''}",
        "quantized": f"{size(summary['quantized_bytes'])}, as fp32 {size(summary['quantized_bytes_as_fp32'])}"
        if summary["quantized_bytes"]
        else "",
        "memory": f"{size(summary['training_bytes'])} while training, plus the activations of a batch",
    }
    if "sizes" in summary:
        at = ", ".join(f"{name} {count}" for name, count in summary["sizes"].items())
        peak, file, resident = (size(summary[f"{kind}_bytes"]) for kind in ("anonymous", "file", "resident"))
        rows["training"] = (
            f"{peak} of anonymous memory at its peak, at {at} ({resident} of it for any sizes), and {file} of file "
            "pages, which the system can drop and read again"
        )
    for name, text in rows.items():
        if text:
            click.echo(f"{name:10} {text}")


def _method(provenance: Json) -> str:
    settings = [f"{name} {value}" for name, value in provenance.items() if name not in ("method", "peft") and value]
    return ", ".join([str(provenance.get("method", "unknown")), *settings])


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype}[{', '.join(map(str, spec.shape))}]"
