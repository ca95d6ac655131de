"""Write a self-contained model for inference, with trained tensors bound and LoRA pairs folded into their weights.

The pair of a quantized weight stays separate, unless the weight is to be dequantized or requantized.
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
from edgepeft_export.program.link import link
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.programs import INFER
from edgepeft_runtime.files.durable import remove
from edgepeft_runtime.files.staging import staged
from edgepeft_runtime.files.tensorfile import Array

LARGEST_FILE = 1_500_000_000
"""Largest size of the weights, in bytes, for a model in one file. Protobuf is limited to 2 GB."""


def write(bundle: Bundle, parameters: Mapping[str, Array], out: Path) -> str:
    """Write ``out`` (and ``<out>.data`` where the weights are too large for one file), and return a summary."""
    model = inference_model(bundle)
    folded = fold(model, parameters)
    save(model, out)
    return described(model, folded, bundle)


def inference_model(bundle: Bundle) -> ir.Model:
    """Return the inference graph with the source's outputs in its order, without scores that only the loss reads."""
    model = link(bundle, INFER)
    outputs = bundle.manifest.provenance.get("outputs")
    if outputs is not None:
        made = {value.name: value for value in model.graph.outputs}
        model.graph.outputs[:] = [made[name] for name in outputs if name in made]
    return model


def described(model: ir.Model, folded: int, bundle: Bundle) -> str:
    """Return a summary of a merged model."""
    separate = sum(pair.a in model.graph.initializers for pair in bundle.manifest.adapter.pairs)
    kept = f", {separate} kept beside quantized ones" if separate else ""
    pairs = "1 LoRA pair folded into its weight" if folded == 1 else f"{folded} LoRA pairs folded into their weights"
    return f"{pairs}{kept}, {_weight_bytes(model) / 1e6:.1f} MB of weights"


def save(model: ir.Model, out: Path) -> None:
    """Write a model whose tensors are all in memory, atomically."""
    with staged(out) as folder:
        made, data = folder / out.name, _data_name(out) if _weight_bytes(model) > LARGEST_FILE else None
        ir.save(model, made, external_data=data)
        onnx.checker.check_model(str(made), full_check=False)
        if data is not None:
            publish(folder / data, out.with_name(data))
        publish(made, out)
        for old in _data_files(out):
            if old.name != data:
                remove(old)


def _weight_bytes(model: ir.Model) -> int:
    """Return the size of all weights."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def _data_name(out: Path) -> str:
    """Return an unused name for weights beside ``out``, so that an existing model stays intact until it is replaced."""
    used = {path.name for path in _data_files(out)}
    names = itertools.chain([f"{out.name}.data"], (f"{out.name}.{count}.data" for count in itertools.count(2)))
    return next(name for name in names if name not in used)


def _data_files(out: Path) -> list[Path]:
    """Return the files of weights beside ``out``, of a present or earlier model."""
    name = re.compile(re.escape(out.name) + r"(\.\d+)?\.data")
    return [path for path in out.parent.iterdir() if name.fullmatch(path.name)]
