"""A quantized base merged for good: pairs folded into weights that are dequantized, or rounded again as they were.

A pair beside its quantized weight, as :mod:`edgepeft.merging.to_onnx` leaves it, gives exactly the device's outputs.
Without the pair the model is simpler and faster, and rounds differently. How much that matters is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from edgepeft.merging.errors import MaskedWeights, NotQuantized
from edgepeft.merging.to_onnx import described, inference_model, save
from edgepeft_export.fold.constants import load_all
from edgepeft_export.fold.requantize import fold_quantized, quantized_layers
from edgepeft_export.graph.edit import bind_inputs
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.files.tensorfile import Array

Outputs = list[list[NDArray[np.generic]]]


def write(
    bundle: Bundle, parameters: Mapping[str, Array], out: Path, quantized: str, calibration: Sequence[Batch] | None
) -> str:
    """Write ``out``; returns what was done, and with calibration data how far both ways are from the device's outputs.

    Args:
        quantized: ``dequantize`` or ``requantize``.
        calibration: batches of inputs, arrays by name.

    Raises:
        MergeError: the base is not quantized, or its masks would be lost.
    """
    _check(bundle)
    ways = {name: _folded(bundle, parameters, name == "requantize") for name in ("dequantize", "requantize")}
    model, folded = ways[quantized]
    save(model, out)
    done = described(model, folded, bundle)
    if calibration is None:
        return done
    device = _outputs(_bound(bundle, parameters), bundle, calibration)
    errors = {name: distance(_outputs(way, bundle, calibration), device) for name, (way, _) in ways.items()}
    return (
        f"{done}; relative error to the device's outputs: {errors['dequantize']:.3g} with fp32 weights, "
        f"{errors['requantize']:.3g} rounded again"
    )


def _check(bundle: Bundle) -> None:
    if not quantized_layers(inference_model(bundle).graph):
        raise NotQuantized(
            "The bundle has no quantized weight that could be dequantized or rounded again.",
            context="what counts: matmuls and convolutions that prepare --compute int8 or int4 has quantized.",
            hint="merge without it: pairs are folded into fp32 weights.",
        )
    if bundle.manifest.adapter.masks:
        raise MaskedWeights(
            "The zeros of pruned weights would be filled by the pairs.",
            context=f"{len(bundle.manifest.adapter.masks)} weights are masked.",
            hint="merge without it: the pairs stay beside their weights.",
        )


def _folded(bundle: Bundle, parameters: Mapping[str, Array], again: bool) -> tuple[ir.Model, int]:
    """The merged model, and the number of pairs folded."""
    model = inference_model(bundle)
    return model, fold_quantized(model, parameters, again=again)


def _bound(bundle: Bundle, parameters: Mapping[str, Array]) -> ir.Model:
    """The device's graph with its adapter in it."""
    model = inference_model(bundle)
    load_all(model.graph)
    bind_inputs(model.graph, parameters)
    return model


def _outputs(model: ir.Model, bundle: Bundle, batches: Sequence[Batch]) -> Outputs:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    content = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in bundle.manifest.inputs]
    return [session.run(None, {name: np.asarray(batch[name]) for name in names}) for batch in batches]


def distance(found: Outputs, exact: Outputs) -> float:
    """Relative L2 distance over all outputs of all batches."""
    pairs = [
        (one.astype(np.float64), other.astype(np.float64))
        for ours, theirs in zip(found, exact, strict=True)
        for one, other in zip(ours, theirs, strict=True)
    ]
    off = sum(float(np.square(one - other).sum()) for one, other in pairs)
    whole = sum(float(np.square(other).sum()) for _, other in pairs)
    return float(np.sqrt(off / whole if whole else off))
