"""Fold pairs into the weights of a quantized base, which are dequantized, or requantized as they were.

A separate pair, as ``edgepeft.merging.to_onnx`` writes it, reproduces the device's outputs exactly. Without the pair
the model is simpler and faster, and rounds differently. Calibration data measures the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft.merging.errors import MaskedWeights, NotQuantized
from edgepeft.merging.to_onnx import described, inference_model, save
from edgepeft_export.fold.constants import load_all
from edgepeft_export.fold.requantize import fold_quantized, quantized_layers
from edgepeft_export.graph.edit import bind_inputs
from edgepeft_export.verification import GraphRun
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.data.named import array_of, by_name
from edgepeft_runtime.files.tensorfile import Array

Outputs = list[list[NDArray[np.generic]]]


def write(
    bundle: Bundle, parameters: Mapping[str, Array], out: Path, quantized: str, calibration: Sequence[Batch] | None
) -> str:
    """Write ``out``, and return a summary, which with calibration data includes the error of both ways.

    Args:
        quantized: ``dequantize`` or ``requantize``.
        calibration: Batches of inputs, arrays by name.

    Raises:
        MergeError: The base is not quantized, or its masks would be lost.
    """
    _check(bundle)
    ways = {name: _folded(bundle, parameters, name == "requantize") for name in ("dequantize", "requantize")}
    model, folded = ways[quantized]
    save(model, out)
    summary = described(model, folded, bundle)
    if calibration is None:
        return summary
    device = _outputs(_bound(bundle, parameters), bundle, calibration)
    errors = {name: distance(_outputs(way, bundle, calibration), device) for name, (way, _) in ways.items()}
    return (
        f"{summary}; relative error to the device's outputs: {errors['dequantize']:.3g} with fp32 weights, "
        f"{errors['requantize']:.3g} requantized"
    )


def _check(bundle: Bundle) -> None:
    if not quantized_layers(inference_model(bundle).graph):
        raise NotQuantized(
            "The bundle has no quantized weight to dequantize or requantize.",
            context="prepare --compute int8 or int4 quantizes the weights of matmuls and convolutions.",
            hint="merge without this setting: pairs are folded into fp32 weights.",
        )
    if bundle.manifest.adapter.masks:
        raise MaskedWeights(
            "Folding the pairs would fill the zeros of pruned weights.",
            context=f"{len(bundle.manifest.adapter.masks)} weights are masked.",
            hint="merge without this setting: the pairs stay separate.",
        )


def _folded(bundle: Bundle, parameters: Mapping[str, Array], again: bool) -> tuple[ir.Model, int]:
    """Return the merged model, and the number of folded pairs."""
    model = inference_model(bundle)
    return model, fold_quantized(model, parameters, again=again)


def _bound(bundle: Bundle, parameters: Mapping[str, Array]) -> ir.Model:
    """Return the device's graph with its adapter bound."""
    model = inference_model(bundle)
    load_all(model.graph)
    bind_inputs(model.graph, parameters)
    return model


def _outputs(model: ir.Model, bundle: Bundle, batches: Sequence[Batch]) -> Outputs:
    run = GraphRun(model)
    names = [spec.name for spec in bundle.manifest.inputs]
    named = [by_name(batch, bundle.manifest, labels=False) for batch in batches]
    return [list(run({name: array_of(batch[name]) for name in names}).values()) for batch in named]


def distance(outputs: Outputs, exact: Outputs) -> float:
    """Return the relative L2 distance over all outputs of all batches."""
    pairs = [
        (array.astype(np.float64), reference.astype(np.float64))
        for arrays, references in zip(outputs, exact, strict=True)
        for array, reference in zip(arrays, references, strict=True)
    ]
    error = sum(float(np.square(array - reference).sum()) for array, reference in pairs)
    total = sum(float(np.square(reference).sum()) for _, reference in pairs)
    return float(np.sqrt(error / total if total else error))
