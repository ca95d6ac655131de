"""Brings a file of any operator set to that of bundles."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import onnx.inliner
import onnx.shape_inference
import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.errors import OpsetNotConverted
from edgepeft_export.forward.onnx_source.quantized import needs_4_bits
from edgepeft_export.graph.expanding.functions import write_older
from edgepeft_export.opset import OPSET, OPSET_4_BITS

_FIRST_SCAN = 9
"""The operator set from which on Scan has no batch."""


def at_opset(model: ir.Model, path: Path) -> ir.Model:
    """The model at the operator set of every bundle; where tensors have 4 bits, at the first that knows them.

    Between the two only types were added to the operators, and ``GroupNormalization`` changed, which 20 does not run.

    Raises:
        OpsetNotConverted: an operator has no form in that set.
    """
    opset, needs_21 = model.graph.opset_imports.get("", OPSET), needs_4_bits(model)
    if opset > OPSET and not (needs_21 and opset == OPSET_4_BITS):
        _lowered(model, path, opset, OPSET_4_BITS if needs_21 else OPSET)
    elif opset < OPSET:
        model = _raised(model, path, opset)
    if needs_21:
        model.graph.opset_imports[""] = OPSET_4_BITS
    return model


def inlined(model: ir.Model, path: Path) -> ir.Model:
    """The model without functions, which may be written in another operator set than the graph.

    Raises:
        OpsetNotConverted: a function has no form in the graph's set.
    """
    opset = model.graph.opset_imports.get("", OPSET)
    others = [each for each in model.functions.values() if each.opset_imports.get("", opset) != opset]
    if not others:
        common.InlinePass()(model)
        return model
    try:
        proto = ir.to_proto(ir.external_data.load_to_model(model))  # the converter cannot read external tensors
        typed = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        made: ir.Model = ir.from_proto(onnx.inliner.inline_local_functions(typed, convert_version=True))
        return made
    except Exception as error:  # of C++, like the converter's
        names = ", ".join(each.name for each in others)
        reason = f"its functions {names} are written in another operator set, and cannot be brought to it."
        raise _not_converted(path, opset, OPSET, reason) from error


def _lowered(model: ir.Model, path: Path, opset: int, wanted: int) -> None:
    unknown = write_older(model, wanted)
    if unknown:
        raise _not_converted(path, opset, wanted, f"no older operators express {', '.join(unknown)}.")


def _raised(model: ir.Model, path: Path, opset: int) -> ir.Model:
    if opset < _FIRST_SCAN and any(
        node.op_type == "Scan" for node in model.graph
    ):  # which the converter keeps as it is
        raise _not_converted(path, opset, OPSET, "its Scan runs over a batch, which later operator sets do not have.")
    try:
        proto = ir.to_proto(ir.external_data.load_to_model(model))  # the converter cannot read external tensors
        converted: ir.Model = ir.from_proto(onnx.version_converter.convert_version(proto, OPSET))
        return converted
    except Exception as error:  # the converter is C++ and raises RuntimeError of many kinds
        reason = _without_newer_form(model, str(error)) or f"{type(error).__name__}: {error}"
        raise _not_converted(path, opset, OPSET, reason) from error


def _without_newer_form(model: ir.Model, reason: str) -> str:
    """The operators that the converter's reason names, as a sentence; empty where it names none."""
    named = sorted({node.op_type for node in model.graph} & set(re.findall(r"\w+", reason)))
    return f"onnx's converter knows no newer form of {', '.join(named)}." if named else ""


def _not_converted(path: Path, opset: int, wanted: int, reason: str) -> OpsetNotConverted:
    return OpsetNotConverted(
        f"{path} has ONNX opset {opset} and cannot be converted to {wanted}.",
        context=reason,
        hint=f"export it again with opset {wanted}; an exporter writes newer operators in older ones.",
    )
