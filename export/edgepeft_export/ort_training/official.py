"""The gradient as ONNX Runtime's own tool builds it, as an oracle for ours.

The tool runs in the environment of the training wheel. Its graphs come from the bundle's eval graph, in a form that it
accepts: parameters are initializers, and layer norms give the statistics that their gradient reads, each from a scale
and a bias of its own.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.errors import NoTrainingPython, OfficialDequantizes, OfficialGradientFailed, OrtTrainingError
from edgepeft_export.finish import LARGE
from edgepeft_export.ort_training.graphs import eval_model
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.files.tensorfile import Array

_TOOL = Path(__file__).with_name("official_tool.py")
_STATISTICS = 3
"""Outputs of a layer norm: the result, mean, and inverse deviation."""


def write_official(bundle: Bundle, folder: Path, training_python: str | Path | None) -> None:
    """Write ``training_model.onnx`` with the tool's gradient, and our ``eval_model.onnx``.

    Raises:
        OrtTrainingError: there is no environment with the tool, or the tool cannot differentiate the graph.
    """
    if training_python is None or not Path(training_python).exists():
        raise NoTrainingPython(
            "The official gradient is built by the training wheel, which has an environment of its own.",
            context=f"interpreter: {training_python or 'not given'}",
            hint="pip install 'edgepeft[ort-training]' into a new environment (x86-64, Python up to 3.12), "
            "and give its interpreter (--training-python).",
        )
    model = eval_model(bundle)
    ir.save(model, folder / "eval_model.onnx")
    forward = folder / "forward.onnx"
    ir.save(acceptable(model, bundle.adapter()), forward)
    command = [str(training_python), "-P", str(_TOOL), str(forward), str(folder), *bundle.adapter()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    forward.unlink()
    if done.returncode:
        raise _failed(done.stderr, done.returncode)
    _check_packed(folder / "training_model.onnx", model)


def acceptable(model: ir.Model, parameters: Mapping[str, Array]) -> ir.Model:
    """The eval graph in the form that the tool reads. It returns only ``loss`` and ``loss_weight``."""
    model = model.clone()
    graph = model.graph
    graph.outputs[2:] = []
    common.RemoveUnusedNodesPass()(model)
    for value in [value for value in graph.inputs if value.name in parameters]:
        graph.inputs.remove(value)
        value.const_value = ir.tensor(parameters[str(value.name)], name=value.name)
        graph.register_initializer(value)
    for node in list(graph):
        if node.op_type == "LayerNormalization":
            _separate(graph, node)
            node.resize_outputs(_STATISTICS)
    common.NameFixPass()(model)
    return model


def _separate(graph: ir.Graph, node: ir.Node) -> None:
    """Give a layer norm its own scale and bias, because the tool would name gradients of shared ones alike."""
    for index, value in enumerate(node.inputs):
        if value is None or value.const_value is None or len(value.uses()) < 2:
            continue
        name = f"{node.name}.{value.name}"
        copy = ir.Value(name=name, shape=value.shape, type=value.type, const_value=ir.tensor(value.const_value.numpy()))
        graph.register_initializer(copy)
        node.replace_input_with(index, copy)


def _check_packed(path: Path, own: ir.Model) -> None:
    """Check that the tool has folded no quantized tensor to floats."""
    before = {str(name) for name in own.graph.initializers}
    for name, value in ir.load(path).graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and name not in before and tensor.dtype.is_floating_point() and tensor.size > LARGE:
            raise OfficialDequantizes(
                "ONNX Runtime's own tool has dequantized the base.",
                context=f"{name}: {tensor.size:,} floats that the bundle stores quantized",
                hint="take the gradient of edgepeft (--gradient own): it leaves the base quantized.",
            )


def _failed(errors: str, code: int) -> OrtTrainingError:
    lines = [line for line in errors.splitlines() if line.strip()] or [f"it ended with code {code}"]
    return OfficialGradientFailed(
        "ONNX Runtime's own tool builds no gradient for this model.",
        context=lines[-1].rpartition(" was false. ")[2].rpartition(" : FAIL : ")[2],
        hint="take the gradient of edgepeft (--gradient own).",
    )
