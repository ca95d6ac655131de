"""Memory mode: recomputed activations give the same step in less memory, as predicted."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from edgepeft.methods import BitFit, Lora, attach
from edgepeft_export import losses
from edgepeft_export.bundle import write_bundle
from edgepeft_export.compile import Compiled, compile_step
from edgepeft_export.forward import Forward, from_torch
from edgepeft_export.memory import activation_peaks
from edgepeft_export.optimizers import SGD
from edgepeft_export.quantize import Quantization, quantize
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.activation_sizes import MemorySpec
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import BundleError, EdgepeftError
from edgepeft_runtime.train.memory.prediction import measured_peak, predict
from tests.support.networks import NETWORKS, to_numpy

FAMILIES = ["bert", "gpt2", "llama", "vit", "cnn"]
SIZES = {"batch": 8, "sequence": 30}


@cache
def _forward(name: str, compute: str) -> Forward:
    network = NETWORKS[name]
    method = BitFit() if network.lora is None else Lora(rank=4, target_modules=network.lora)
    forward = from_torch(attach(method, network.model()), network.example())
    return quantize(forward, Quantization(compute, smallest=64))[0]


@cache
def _compiled(name: str, compute: str, mode: str) -> Compiled:
    return compile_step(_forward(name, compute), losses.by_name(NETWORKS[name].loss), SGD(lr=0.1), mode)


def _trained(name: str, compute: str, mode: str, out: Path) -> tuple[list[float], dict[str, np.ndarray]]:
    loss = losses.by_name(NETWORKS[name].loss)
    bundle = write_bundle(_compiled(name, compute, mode), loss, SGD(lr=0.1), out / mode)
    with Trainer.open(bundle, threads=1) as trainer:
        found = [trainer.step(to_numpy(*batch)) for batch in NETWORKS[name].batches(4)]
        return found, trainer.parameters()


@pytest.mark.parametrize("compute", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_is_the_same_when_activations_are_computed_twice(name: str, compute: str, tmp_path: Path) -> None:
    """Losses and parameters after four steps agree to 1e-5, for every family of networks, quantized or not."""
    kept, again = (_trained(name, compute, mode, tmp_path) for mode in ("none", "block"))
    assert again[0] == pytest.approx(kept[0], rel=1e-6)
    for parameter, array in kept[1].items():
        np.testing.assert_allclose(again[1][parameter], array, rtol=1e-5, atol=1e-6, err_msg=parameter)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
def test_less_is_alive_at_once(name: str) -> None:
    """By the bundle's own estimate, the peak of a transformer's step is lower."""
    kept, again = (MemorySpec(_compiled(name, "fp32", mode).activations) for mode in ("none", "block"))
    assert again.bytes_at(SIZES) < 0.9 * kept.bytes_at(SIZES)


def test_onnxruntime_does_not_undo_it(tmp_path: Path) -> None:
    """After onnxruntime's own optimization the second copies of the products are still there."""
    counts, loss = {}, losses.by_name("cross_entropy")
    for mode in ("none", "block"):
        compiled = compile_step(_forward("bert", "int8"), loss, SGD(lr=0.1), mode)
        bundle = write_bundle(compiled, loss, SGD(lr=0.1), tmp_path / mode)
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(bundle / "optimized")
        ort.InferenceSession(str(bundle / "train.onnx"), options)
        kinds = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")
        nodes = onnx.load(bundle / "optimized", load_external_data=False).graph.node
        counts[mode] = sum(node.op_type in kinds for node in nodes)
    assert counts["block"] >= counts["none"] + 6


def test_what_cannot_be_computed_twice_is_said() -> None:
    """Unknown modes, and a model of one layer."""
    forward, loss = from_torch(nn.Linear(3, 2), torch.zeros(2, 3)), losses.by_name("mse")
    with pytest.raises(EdgepeftError, match="named 'half'"):
        compile_step(forward, loss, SGD(lr=0.1), "half")
    with pytest.raises(EdgepeftError, match="no activation"):
        compile_step(forward, loss, SGD(lr=0.1), "block")


def test_the_bytes_alive_are_counted() -> None:
    """y = relu(a) + relu(b): both, and the sum, are alive at once. Reshaping needs no memory. Dims keep their names."""
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 20]>
        agraph (float[batch,4] a, float[batch,4] b) => (float[n] y)
        <int64[1] flat = {-1}> {
            p = Relu(a)
            q = Relu(b)
            s = Add(p, q)
            y = Reshape(s, flat)
        }""")
    assert activation_peaks(model) == [{"batch": 3 * 16}]
    assert MemorySpec(({"batch": 48}, {"batch*batch": 1, "": 5})).bytes_at({"batch": 100}) == 10_005


class Wide(nn.Module):
    """Mostly activations: 12 layers of 1,024, with a symbolic number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[part for _ in range(12) for part in (nn.Linear(1024, 1024), nn.GELU())])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layers(rows)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    torch.manual_seed(0)
    model = Wide().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    forward, loss = from_torch(model, {"rows": torch.zeros(2, 1024)}), losses.by_name("mse")
    forward, _ = quantize(forward, Quantization("int8"))
    folder = tmp_path_factory.mktemp("wide")
    settings = {"none": ("none",), "block": ("block",), "segments": ("none", "input")}
    compiled = {name: compile_step(forward, loss, SGD(lr=0.1), *chosen) for name, chosen in settings.items()}
    written = {name: write_bundle(made, loss, SGD(lr=0.1), folder / name) for name, made in compiled.items()}
    return {name: Bundle.open(path) for name, path in written.items()}


@pytest.mark.parametrize("mode", ["none", "block", "segments"])
def test_the_peak_of_a_step_is_predicted(wide: dict[str, Bundle], mode: str) -> None:
    """Within 15 % of the memory of a process that trains at that size."""
    sizes = {"batch": 2048}
    predicted, measured = predict(wide[mode], sizes).peak(sizes), measured_peak(wide[mode], sizes)
    assert predicted.anonymous == pytest.approx(measured.anonymous, rel=0.15)
    assert predicted.file == pytest.approx(measured.file, rel=0.15)


def test_a_process_really_needs_less(wide: dict[str, Bundle]) -> None:
    """Measured, not computed: a batch of 2,048 needs at least 30 MB less."""
    kept, again = (measured_peak(wide[mode], {"batch": 2048}).anonymous for mode in ("none", "block"))
    assert again < kept - 30e6


def test_sizes_that_do_not_fit_are_refused(wide: dict[str, Bundle]) -> None:
    """Missing, unknown and impossible sizes are named, with the known ones."""
    for sizes in ({}, {"batch": 2, "sequence": 3}, {"batch": 0}):
        with pytest.raises(BundleError, match="symbolic dimensions: batch"):
            predict(wide["none"], sizes)
