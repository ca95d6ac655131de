"""``optimizer_model.onnx``: one operator of ONNX Runtime Training over sequences; it depends on no model."""

from __future__ import annotations

from dataclasses import asdict

import onnx
from onnx import TensorProto, helper

from edgepeft_export.errors import NoOfficialOptimizer, OrtTrainingError
from edgepeft_export.opset import IR_VERSION, OPSET
from edgepeft_export.optimizers import Optimizer
from edgepeft_export.optimizers.registry import of_manifest
from edgepeft_export.ort_training.graphs import MICROSOFT
from edgepeft_runtime.bundle.manifest import Manifest

_SEQUENCES = ("params", "gradients", "first_order_moments")
"""Inputs of every optimizer model, whether its operator reads them or not."""


def optimizer_model(manifest: Manifest) -> onnx.ModelProto:
    """The bundle's optimizer; weight decay applies to all parameters or to none.

    Raises:
        OrtTrainingError: ONNX Runtime Training has no such optimizer.
    """
    optimizer = of_manifest(manifest.optimizer)
    official = optimizer.official(any(bucket.decay for bucket in manifest.buckets))
    if official is None or optimizer.gradient_fraction is not None:
        raise _no_official(optimizer)
    more = [name for name in official.inputs if name not in ("learning_rate", "step", *_SEQUENCES)]
    inputs = [
        helper.make_tensor_value_info("learning_rate", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("step", TensorProto.INT64, [1]),
        *(_sequence(name) for name in (*_SEQUENCES, *more)),
    ]
    nodes, fed = [], list(official.inputs)
    if optimizer.max_grad_norm is not None:
        nodes.append(_node("InplaceClipGradNorm", ["gradients"], "clipped", max_norm=float(optimizer.max_grad_norm)))
        fed[fed.index("gradients")] = "clipped"
    nodes.append(_node(official.op_type, fed, "updated", **official.attributes))
    output = helper.make_tensor_value_info("updated", TensorProto.BOOL, [1])
    graph = helper.make_graph(nodes, "optimizer", inputs, [output])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edgepeft")


def _no_official(optimizer: Optimizer) -> OrtTrainingError:
    changed = {name: value for name, value in asdict(optimizer).items() if value != optimizer.defaults()[name]}
    settings = ", ".join(f"{name} {value}" for name, value in changed.items())
    return NoOfficialOptimizer(
        f"ONNX Runtime Training has no optimizer that computes {optimizer.name} with these settings.",
        context=f"settings: {settings or 'the defaults'}; its optimizers are AdamW and plain SGD, each with clipping",
        hint="prepare with AdamW, or train with the portable engine.",
    )


def _node(op_type: str, inputs: list[str], output: str, **attributes: float) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=op_type, domain=MICROSOFT, **attributes)


def _sequence(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None)
