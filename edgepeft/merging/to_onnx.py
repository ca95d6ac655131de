"""A model for inference of its own: the trained tensors bound, LoRA pairs folded, frozen weights taken in.

A pair beside a quantized weight stays beside it, unless the weight is to be dequantized, or rounded again.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from edgepeft.merging.target import publish
from edgepeft_export.fold import fold
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.files.durable import remove
from edgepeft_runtime.files.staging import staged
from edgepeft_runtime.files.tensorfile import Array

LARGEST_FILE = 1_500_000_000
"""Bytes of weights up to which the model is one file: protobuf ends at 2 GB."""


def write(bundle: Bundle, parameters: Mapping[str, Array], out: Path) -> str:
    """Write ``out`` (and ``<out>.data`` where the weights are too large for one file); returns what was done."""
    model = inference_model(bundle)
    folded = fold(model, parameters)
    save(model, out)
    return described(model, folded, bundle)


def inference_model(bundle: Bundle) -> ir.Model:
    """The inference graph with the outputs that the source has: scores that only the loss reads are left out."""
    model = ir.load(bundle.file("infer.onnx"))
    given = bundle.manifest.provenance.get("outputs")
    if given is not None:
        model.graph.outputs[:] = [value for value in model.graph.outputs if value.name in given]
    return model


def described(model: ir.Model, folded: int, bundle: Bundle) -> str:
    """What a merged model is, in a phrase."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    beside = sum(pair.a in model.graph.initializers for pair in bundle.manifest.adapter.pairs)
    kept = f", {beside} kept beside quantized ones" if beside else ""
    return f"{folded} LoRA pairs folded into their weights{kept}, {size / 1e6:.1f} MB of weights"


def save(model: ir.Model, out: Path) -> None:
    """Write a model whose tensors are all in memory, whole or not at all."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    with staged(out) as folder:
        made, data = folder / out.name, _data_name(out) if size > LARGEST_FILE else None
        ir.save(model, made, external_data=data)
        onnx.checker.check_model(str(made), full_check=False)
        if data is not None:
            publish(folder / data, out.with_name(data))
        publish(made, out)
        for old in _data_files(out):
            if old.name != data:
                remove(old)


def _data_name(out: Path) -> str:
    """A name for weights beside ``out``, of no file that the model in its place reads: it stays whole until the end."""
    taken = {path.name for path in _data_files(out)}
    names = itertools.chain([f"{out.name}.data"], (f"{out.name}.{count}.data" for count in itertools.count(2)))
    return next(name for name in names if name not in taken)


def _data_files(out: Path) -> list[Path]:
    """Weights beside ``out``, of a model that is or was there."""
    name = re.compile(re.escape(out.name) + r"(\.\d+)?\.data")
    return [path for path in out.parent.iterdir() if name.fullmatch(path.name)]
