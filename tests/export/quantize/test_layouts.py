"""Large matrices are stored in the layouts that both passes read, so that onnxruntime makes no copies of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgepeft.methods import Lora, attach
from edgepeft_export import losses
from edgepeft_export.bundle import write_bundle
from edgepeft_export.compile import Compiled, compile_step
from edgepeft_export.forward import Forward, from_torch
from edgepeft_export.graph.constants import is_frozen
from edgepeft_export.optimizers import SGD
from edgepeft_export.quantize import Quantization, quantize
from edgepeft_runtime import Trainer
from tests.support.networks import NETWORKS, to_numpy


def _forward(name: str) -> Forward:
    network = NETWORKS[name]
    model = attach(Lora(rank=8, alpha=16, target_modules=network.lora), network.model())
    return from_torch(model, network.example())


def _compiled(forward: Forward, name: str, large: int, compute: str = "int8") -> Compiled:
    quantized, _ = quantize(forward, Quantization(compute, smallest=64, large=large))
    return compile_step(quantized, losses.by_name(NETWORKS[name].loss), SGD(lr=0.05))


def _transposed_constants(model: ir.Model) -> list[str]:
    return [str(node.name) for node in model.graph if node.op_type == "Transpose" and is_frozen(node.inputs[0])]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_both_layouts_are_stored_and_give_the_same_integers(name: str, tmp_path: Path) -> None:
    """No graph transposes a constant; losses and parameters of three steps are equal bit for bit."""
    forward, loss = _forward(name), losses.by_name(NETWORKS[name].loss)
    found = []
    for large in (0, 10**9):
        compiled = _compiled(forward, name, large)
        transposed = [name for model in compiled.graphs.values() for name in _transposed_constants(model)]
        assert bool(transposed) == (large > 0)
        bundle = write_bundle(compiled, loss, SGD(lr=0.05), tmp_path / str(large))
        with Trainer.open(bundle, threads=1) as trainer:
            steps = [trainer.step(to_numpy(*batch)) for batch in NETWORKS[name].batches(3)]
            found.append((steps, trainer.parameters()))
    assert found[0][0] == found[1][0]
    assert all(np.array_equal(array, found[1][1][name]) for name, array in found[0][1].items())


@pytest.mark.parametrize("compute", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_onnxruntime_adds_no_large_constant(name: str, compute: str, tmp_path: Path) -> None:
    """After onnxruntime's own optimization, each large constant is one of the bundle's, with its bytes."""
    compiled, loss = _compiled(_forward(name), name, 0, compute), losses.by_name(NETWORKS[name].loss)
    bundle = write_bundle(compiled, loss, SGD(lr=0.05), tmp_path / "b")
    for graph in ("train", "eval", "infer"):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(bundle / f"{graph}.optimized")
        ort.InferenceSession(str(bundle / f"{graph}.onnx"), options)
        loaded = onnx.load(options.optimized_model_filepath, load_external_data=False).graph.initializer
        stored = {
            tensor.name for tensor in onnx.load(bundle / f"{graph}.onnx", load_external_data=False).graph.initializer
        }
        assert not [tensor.name for tensor in loaded if np.prod(tensor.dims) > 64 * 16 and tensor.name not in stored]


def test_a_layout_that_no_pass_reads_is_not_stored() -> None:
    """Inference multiplies by one layout of each matrix."""
    compiled = _compiled(_forward("llama"), "llama", 0)
    names = set(compiled.graphs["infer"].graph.initializers)
    assert names and not [name for name in names if f"{name}.transposed" in names]
