"""Quantizes the frozen weights of a forward graph: int8 or int4, in the bundle, in memory, forward and backward.

Or by codebooks, in the bundle alone.

Quantization comes before the gradient is taken, so the backward pass multiplies by the same bytes. A trainable tensor
is a graph input and is never quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.errors import NoSuchWeight, NothingToQuantize, QuantizeError
from edgepeft_export.forward import Forward
from edgepeft_export.graph.int4 import Int8Array
from edgepeft_export.graph.rounding import Int8Matrix
from edgepeft_export.graph.smoothing import Smoothing
from edgepeft_export.quantization import Quantization, QuantizationReport, QuantizedTensor
from edgepeft_export.quantize.activations import rounded_by_row
from edgepeft_export.quantize.choose import Batch, complete, most_sensitive
from edgepeft_export.quantize.codebook import share_weights
from edgepeft_export.quantize.compensation import compensated
from edgepeft_export.quantize.layouts import is_large, store_transposed
from edgepeft_export.quantize.rewrite import Quantizer, needs_8_bits
from edgepeft_export.quantize.tensors import quantized_tensors
from edgepeft_export.quantize.weights import Weight, reasons, weights_of
from edgepeft_runtime.names import did_you_mean

__all__ = ["Quantization", "QuantizationReport", "QuantizeError", "QuantizedTensor", "quantize"]


def quantize(
    forward: Forward,
    settings: Quantization,
    calibration: Sequence[Batch] | None = None,
    on_progress: Callable[[str], None] | None = None,
    *,
    decided: QuantizationReport | None = None,
) -> tuple[Forward, QuantizationReport]:
    """A forward graph whose frozen matmuls, look-up tables and kernels are quantized.

    Args:
        forward: is not changed.
        settings: of the quantization.
        calibration: a few batches of inputs, arrays by name; with them the most sensitive weights stay fp32 until
            ``settings.tolerance`` is met.
        on_progress: Called with a message before each slow step.
        decided: the report of another graph of the model, whose rounding this one has.

    Raises:
        QuantizeError: nothing can be quantized, a pattern of ``keep`` or the calibration data does not fit.
    """
    report, model = QuantizationReport(), forward.model
    if decided is not None:
        report.rows, report.rounded, report.matrices = decided.rows, decided.rounded, decided.matrices
    if settings.compute != "fp32":
        model = _quantize_tolerable(forward, settings, report, calibration, on_progress, decided=decided is not None)
    if settings.codebook is not None:
        model = _with_codebooks(model, settings, report.kept)
    elif settings.compute != "fp32":
        report.kept.update(reasons(forward.model.graph, settings.smallest))
    quantized = quantized_tensors(model.graph)
    if is_large(quantized, settings.large):
        model = model.clone()
        store_transposed(model.graph, _nearest(forward.model.graph, settings, report))
        quantized = quantized_tensors(model.graph)
    return replace(forward, model=model), replace(report, quantized=quantized)


def _quantize_tolerable(
    forward: Forward,
    settings: Quantization,
    report: QuantizationReport,
    calibration: Sequence[Batch] | None,
    on_progress: Callable[[str], None] | None,
    *,
    decided: bool,
) -> ir.Model:
    """A copy in which all weights that tolerate it are integers. The others are listed in ``report.kept``."""
    names = [weight.name for weight in weights_of(forward.model.graph, settings.smallest)]
    _check(names, settings)
    report.kept.update({name: "by its name" for name in names if settings.keeps(name)})
    names = [name for name in names if name not in report.kept]
    if settings.compute == "int4":
        report.wider.update(_wider(forward.model.graph, settings, names))
    if not decided:
        report.rows = _by_row(forward, settings, names, calibration)
    if calibration is not None:
        if _elements(forward.model.graph, settings, names) >= settings.large:
            if on_progress is not None:
                on_progress("compensating the rounding errors of weights")
            report.rounded = _compensated(forward, settings, names, report.rows, calibration)
        if on_progress is not None:
            on_progress(f"measuring the error of rounding each of {len(names)} weights")

        def variant(quantized: Iterable[str]) -> ir.Model:
            return _quantized(forward.model, settings, set(quantized), report)

        errors = most_sensitive(forward, names, variant, calibration, settings.tolerance)
        report.kept.update({name: f"relative error {error:.3g} alone" for name, error in errors.items()})
    return _quantized(forward.model, settings, {name for name in names if name not in report.kept}, report)


def _elements(graph: ir.Graph, settings: Quantization, names: Collection[str]) -> int:
    return sum(
        int(np.prod(weight.value.shape.numpy()))
        for weight in weights_of(graph, settings.smallest)
        if weight.name in names and weight.value.shape is not None
    )


def _nearest(graph: ir.Graph, settings: Quantization, report: QuantizationReport) -> dict[str, Callable[[], Int8Array]]:
    """The integers of compensated matrices as they were without that, by the names of the matrices."""
    weights = [weight for weight in weights_of(graph, settings.smallest) if weight.name in report.rounded]
    return {f"{weight.name}.int8": partial(_rounded_alone, weight, report) for weight in weights}


def _rounded_alone(weight: Weight, report: QuantizationReport) -> Int8Array:
    smoothing, matrix = report.rows.get(weight.name), report.rounded[weight.name]
    array = weight.array if smoothing is None else smoothing.multiplied(weight.array, 1 - weight.channels)
    return np.rint(array / np.expand_dims(matrix.scale, 1 - matrix.axis)).astype(np.int8)


def _wider(graph: ir.Graph, settings: Quantization, names: Collection[str]) -> dict[str, str]:
    """The weights that need 8 bits, each with the reason."""
    found = ((weight.name, needs_8_bits(weight)) for weight in weights_of(graph, settings.smallest))
    return {name: reason for name, reason in found if reason is not None and name in names}


def _by_row(
    forward: Forward, settings: Quantization, names: Sequence[str], calibration: Sequence[Batch] | None
) -> dict[str, Smoothing | None]:
    """How inputs are rounded by row: by the calibration data, or by the inputs of the verification."""
    given = [example.inputs for example in forward.verified.examples] if calibration is None else calibration
    batches = [complete(forward, batch) for batch in given]
    everywhere = settings.rounding == "row"
    return rounded_by_row(forward.model, names, batches, settings.smallest, everywhere=everywhere)


def _compensated(
    forward: Forward,
    settings: Quantization,
    names: Sequence[str],
    rows: Mapping[str, Smoothing | None],
    calibration: Sequence[Batch],
) -> dict[str, Int8Matrix]:
    """The integers of the weights of 8 bits. Those of 4 bits keep the grid of their file."""
    graph, four = forward.model.graph, settings.compute == "int4"
    eight = set(names) if not four else set(_wider(graph, settings, names))
    batches = [complete(forward, batch) for batch in calibration]
    return compensated(forward.model, eight, rows, batches, settings.smallest)


def _with_codebooks(model: ir.Model, settings: Quantization, kept: Collection[str]) -> ir.Model:
    """A copy whose remaining float weights are stored by codebooks."""
    assert settings.codebook is not None
    model = model.clone()
    share_weights(model, settings.codebook, settings.smallest, lambda name: name in kept or settings.keeps(name))
    common.NameFixPass()(model)
    return model


def _quantized(model: ir.Model, settings: Quantization, names: set[str], report: QuantizationReport) -> ir.Model:
    """A copy of ``model`` with the weights of these names quantized, as the report has it."""
    model = model.clone()
    weights = [weight for weight in weights_of(model.graph, settings.smallest) if weight.name in names]
    Quantizer(model.graph, settings, report.rows, report.rounded, report.matrices).quantize(weights)
    model.graph.sort()  # new nodes were appended at the end
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    return model


def _check(names: Sequence[str], settings: Quantization) -> None:
    if not names:
        raise NothingToQuantize(
            "The model has no frozen weight that could be quantized.",
            context="it would need matmuls, look-up tables and convolutions with a frozen fp32 weight "
            f"of {settings.smallest:,} elements or more",
            hint="leave compute at fp32, or train fewer tensors.",
        )
    for pattern in settings.keep:
        if not any(replace(settings, keep=(pattern,)).keeps(name) for name in names):
            raise NoSuchWeight(
                f"No weight that would be quantized fits {pattern!r}.",
                context=f"there are: {', '.join(names[:12])}{' …' if len(names) > 12 else ''}",
                hint=did_you_mean(
                    pattern, names, "give the name of a weight or module, or a pattern such as '*.layer.5.*'."
                ),
            )
