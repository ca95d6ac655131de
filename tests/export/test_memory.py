"""The memory of a step is predicted, and a step in segments needs less."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
import transformers
from torch import nn

import edgepeft
from benchmarks.llm.memory import MB
from benchmarks.llm.shapes import SHAPES
from edgepeft.methods import Lora, attach
from edgepeft_export import losses
from edgepeft_export.bundle import write_bundle
from edgepeft_export.compile import Compiled, compile_step
from edgepeft_export.forward import from_torch
from edgepeft_export.memory import activation_peaks
from edgepeft_export.optimizers import SGD
from edgepeft_export.program import WEIGHTS
from edgepeft_export.quantize import Quantization, quantize
from edgepeft_runtime.bundle.activation_sizes import MemorySpec
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import BundleError
from edgepeft_runtime.train.memory.prediction import measured_peak, predict
from tests.support.networks import NETWORKS

SIZES = {"batch": 64, "sequence": 30}


@cache
def _compiled(name: str, weights: str) -> Compiled:
    network = NETWORKS[name]
    forward = from_torch(attach(Lora(rank=4, target_modules=network.lora), network.model()), network.example())
    return compile_step(forward, losses.by_name(network.loss), SGD(lr=0.1), weights)


@pytest.mark.parametrize("name", ["bert", "llama", "vit"])
def test_less_is_alive_at_once(name: str) -> None:
    """By the bundle's own estimate, the peak of a transformer's step is lower."""
    kept, again = (MemorySpec(_compiled(name, weights).activations) for weights in WEIGHTS)
    assert again.bytes_at(SIZES) < 0.9 * kept.bytes_at(SIZES)


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
    compiled = {weights: compile_step(forward, loss, SGD(lr=0.1), weights) for weights in WEIGHTS}
    written = {name: write_bundle(made, loss, SGD(lr=0.1), folder / name) for name, made in compiled.items()}
    return {name: Bundle.open(path) for name, path in written.items()}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("lacks", [False, True])
def test_the_peak_of_a_step_is_predicted(wide: dict[str, Bundle], weights: str, lacks: bool) -> None:
    """Within 15 % of the memory of a process that trains at that size, from half of it where a machine lacks memory."""
    sizes, bundle = {"batch": 2048}, wide[weights]
    assert bundle.manifest.memory is not None
    largest = bundle.manifest.memory.bytes_at(sizes) - 1 if lacks else None
    predicted, measured = predict(bundle, sizes, largest=largest).peak(sizes), measured_peak(bundle, sizes)
    assert predicted.anonymous == pytest.approx(measured.anonymous, rel=0.15)
    assert predicted.file == pytest.approx(measured.file, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "chunks"), [("qwen2.5-0.5b", "normal"), ("smollm2-135m", "small")])
def test_memory_is_predicted_at_true_widths(tmp_path: Path, shape: str, chunks: str) -> None:
    """Within 15 % of a process that trains two blocks of a language model on random tokens, short and long."""
    model, sizes = SHAPES[shape], {**SHAPES[shape].sizes, "num_hidden_layers": 2}
    config = getattr(transformers, model.config)(**sizes)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    made = edgepeft.prepare(
        edgepeft.load_source(tmp_path / "model"),
        method=edgepeft.Lora(rank=8, target_modules=("q_proj", "v_proj")),
        compute="int8",
        compression=edgepeft.Compression(weights="input", chunks=chunks),
        generation=False,
        out=tmp_path / "bundle",
    )
    for length in (256, 2048):
        arguments = [sys.executable, "-c", _TRAINS, str(made.bundle), str(length), str(config.vocab_size)]
        measured = float(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
        wanted = {"batch": 1, "sequence": length}
        predicted = predict(Bundle.open(made.bundle), wanted).peak(wanted).anonymous / MB
        assert predicted == pytest.approx(measured, rel=0.15), f"1 x {length}"


_TRAINS = """
import sys
import numpy as np
from benchmarks.llm.memory import Sampler
from edgepeft_runtime import Bundle, Trainer
sampler = Sampler()
ids = np.random.default_rng(0).integers(0, int(sys.argv[3]), (1, int(sys.argv[2])))
with Trainer.open(Bundle.open(sys.argv[1])) as trainer:
    for _ in range(2):
        trainer.step({"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids})
print(sampler.end()["anon_mb"])
"""


def test_a_process_really_needs_less(wide: dict[str, Bundle]) -> None:
    """Measured, not computed: a batch of 2,048 needs at least 10 MB less."""
    kept, again = (measured_peak(wide[weights], {"batch": 2048}).anonymous for weights in WEIGHTS)
    assert again < kept - 10e6


def test_sizes_that_do_not_fit_are_refused(wide: dict[str, Bundle]) -> None:
    """Missing, unknown and impossible sizes are named, with the known ones."""
    for sizes in ({}, {"batch": 2, "sequence": 3}, {"batch": 0}):
        with pytest.raises(BundleError, match="symbolic dimensions: batch"):
            predict(wide["constant"], sizes)
