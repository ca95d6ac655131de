"""``optimizer_model.onnx``: one operator of ONNX Runtime Training over sequences; it depends on no model."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper

from edgepeft_export.opset import IR_VERSION, OPSET
from edgepeft_export.ort_training.errors import OrtTrainingError
from edgepeft_export.ort_training.graphs import MICROSOFT
from edgepeft_runtime.bundle.manifest import Manifest

_TORCH_MODE = 0
"""``adam_mode``: epsilon is added behind the correction of the second moment, as PyTorch does."""


def optimizer_model(manifest: Manifest) -> onnx.ModelProto:
    """The bundle's optimizer; weight decay applies to all that trains if it applies to anything.

    Raises:
        OrtTrainingError: ONNX Runtime Training has no such optimizer.
    """
    settings, kind = manifest.optimizer.settings, manifest.optimizer.kind
    _refuse(kind, settings)
    inputs = [
        helper.make_tensor_value_info("learning_rate", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("step", TensorProto.INT64, [1]),
        *(_sequence(name) for name in ("params", "gradients", "first_order_moments")),
    ]
    nodes, gradients = [], "gradients"
    if (norm := settings.get("max_grad_norm")) is not None:
        nodes.append(_node("InplaceClipGradNorm", [gradients], "clipped", max_norm=float(norm)))
        gradients = "clipped"
    if kind == "adamw":
        inputs.append(_sequence("second_order_moments"))
        fed = ["learning_rate", "step", "params", gradients, "first_order_moments", "second_order_moments"]
        nodes.append(_node("AdamWOptimizer", fed, "updated", **_adamw(manifest)))
    else:
        nodes.append(_node("SGDOptimizerV2", ["learning_rate", "params", gradients], "updated"))
    output = helper.make_tensor_value_info("updated", TensorProto.BOOL, [1])
    graph = helper.make_graph(nodes, "optimizer", inputs, [output])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edgepeft")


def _adamw(manifest: Manifest) -> dict[str, Any]:
    settings = manifest.optimizer.settings
    betas, decays = settings["betas"], any(bucket.decay for bucket in manifest.buckets)
    return {
        "alpha": float(betas[0]),
        "beta": float(betas[1]),
        "epsilon": float(settings["eps"]),
        "weight_decay": float(settings["weight_decay"]) if decays else 0.0,
        "correct_bias": 1,
        "adam_mode": _TORCH_MODE,
    }


def _refuse(kind: str, settings: dict[str, Any]) -> None:
    found = [name for name in ("momentum", "weight_decay", "nesterov") if settings.get(name)] if kind == "sgd" else []
    if kind not in ("adamw", "sgd") or "gradient_share" in settings:
        found = ["gradient sparsification"]
    if found:
        raise OrtTrainingError(
            "no-official-optimizer",
            f"ONNX Runtime Training has no {kind} with {' and '.join(found)}.",
            context="its optimizers are AdamW and plain SGD, each with clipping",
            hint="prepare with AdamW, or train with the portable engine.",
        )


def _node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=op_type, domain=MICROSOFT, **attributes)


def _sequence(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None)
