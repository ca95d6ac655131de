"""The quantized frozen base: the stored tensors, the results of matmuls, and gradients across quantized weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
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
from edgepeft_export.autodiff.registry import RULES, Gradients, Rule, Upstream
from edgepeft_export.bundle import Extras, write_bundle
from edgepeft_export.compile import compile_step
from edgepeft_export.errors import DequantizedTensor, NoCalibration, QuantizeError
from edgepeft_export.forward import Forward, from_torch
from edgepeft_export.graph.custom_ops import lower
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.int4 import to_int4
from edgepeft_export.graph.rounding import to_int8
from edgepeft_export.losses import CrossEntropy
from edgepeft_export.optimizers import SGD
from edgepeft_export.quantize import Quantization, quantize
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import BadSetting
from tests.matrix import ALL
from tests.support.networks import Network, to_numpy, torch_loss

RNG = np.random.default_rng(0)


def _unpacked4(matrix: np.ndarray, block: int) -> np.ndarray:
    return to_int4(np.ascontiguousarray(matrix.T), block).matrix().T


@pytest.mark.parametrize("shape", [(64, 48), (5, 3), (1, 7), (7, 1), (384, 96)])
@pytest.mark.parametrize("axis", [0, 1])
def test_int8_rounds_to_the_nearest_step(shape: tuple[int, int], axis: int) -> None:
    """No element is off by more than half a step, and all steps fit a byte."""
    matrix = RNG.normal(size=shape).astype(np.float32)
    packed = to_int8(matrix, axis)
    scale = np.expand_dims(packed.scale, 1 - axis)
    assert np.all(np.abs(packed.values * scale - matrix) <= 0.5 * scale * (1 + 1e-5))
    assert np.abs(packed.values.astype(int)).max() <= 127


def test_int8_never_overflows_16_bit_pair_sums() -> None:
    """Neighbours of one sign, along either axis, stay within 128 steps, also for weights that are all extreme."""
    for matrix in (np.ones((6, 8), np.float32), RNG.standard_cauchy((64, 32)).astype(np.float32)):
        values = to_int8(matrix, 1).values.astype(int)
        for whole in (values, values.T):
            pairs = whole.reshape(-1, 2, whole.shape[1])
            assert np.maximum(pairs, 0).sum(axis=1).max() <= 128
            assert np.minimum(pairs, 0).sum(axis=1).min() >= -128


def test_int8_keeps_zeros_and_constant_columns() -> None:
    """Zeros stay zeros, so a pruned weight stays pruned; a column of zeros has no scale of zero."""
    matrix = RNG.normal(size=(32, 6)).astype(np.float32)
    matrix[:, 2], matrix[::2] = 0, 0
    packed = to_int8(matrix, 1)
    assert np.array_equal(packed.values == 0, matrix == 0) or np.all(packed.values[matrix == 0] == 0)
    assert np.all(packed.scale > 0)


@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize("width", [128, 96, 33])
def test_int4_is_within_a_step_and_beats_plain_rounding(block: int, width: int) -> None:
    """The chosen scales have at most the error of scale = largest / 8, and zeros stay zeros."""
    matrix = RNG.normal(size=(24, width)).astype(np.float32)
    matrix[:, ::5] = 0
    whole = _unpacked4(matrix, block)
    assert np.all(whole[matrix == 0] == 0)
    padded = np.pad(matrix, ((0, 0), (0, -width % block))).reshape(24, -1, block)
    plain = np.abs(padded).max(axis=-1, keepdims=True) / 8
    plain = np.where(plain == 0, 1, plain)
    rounded = np.clip(np.rint(padded / plain), -8, 7) * plain
    assert np.square(whole - matrix).sum() <= np.square(rounded - padded).sum()


class Tables(nn.Module):
    """Every reader of a quantized weight: look-ups, a tied head, matmuls with and without bias, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 48)
        self.up = nn.Linear(48, 80)
        self.mix = nn.Conv1d(80, 80, 3, padding=1, groups=2)
        self.down = nn.Linear(80, 48, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.words(ids)
        mixed = self.mix(torch.tanh(self.up(hidden)).transpose(1, 2)).transpose(1, 2)
        return (hidden + self.down(mixed)) @ self.words.weight.T


def _tables() -> Forward:
    torch.manual_seed(0)
    model = Tables().requires_grad_(False)
    model.up.bias.requires_grad_(True)
    return from_torch(model, {"ids": torch.zeros(2, 5, dtype=torch.int64)})


def _run(forward: Forward, ids: np.ndarray) -> np.ndarray:
    model = forward.model.clone()
    lower(model)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    (output,) = session.run(None, {"ids": ids, **forward.parameters})
    return np.asarray(output)


@pytest.mark.parametrize("compute", ["int8", "int4"])
def test_every_reader_reads_the_quantized_weight(compute: str) -> None:
    """Outputs of look-ups, matmuls, a tied head and a convolution stay close, and no fp32 copy remains."""
    forward = _tables()
    packed, report = quantize(forward, Quantization(compute))
    ids = RNG.integers(0, 100, (3, 7))
    exact, rounded = _run(forward, ids), _run(packed, ids)
    error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
    assert 0 < error < (0.03 if compute == "int8" else 0.15)
    assert sorted(item.elements for item in report.quantized.values()) == [48 * 80, 48 * 80, 100 * 48, 80 * 40 * 3]
    assert not [
        v.name for v in packed.model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT and _size(v) > 2000
    ]
    assert forward.model.graph.initializers["words.weight"].dtype == ir.DataType.FLOAT  # the original stays


def _size(value: ir.Value) -> int:
    assert value.const_value is not None
    return int(value.const_value.size)


def test_patterns_and_sizes_choose_what_is_quantized() -> None:
    """``keep`` accepts names, modules and patterns. Small tensors stay. The report says why."""
    forward = _tables()
    _, report = quantize(forward, Quantization("int8", keep=("up", "*words*")))
    assert set(report.quantized) == {"mix.weight.int8", "down.weight.int8"}
    assert set(report.kept) == {"up.weight", "words.weight"}
    _, report = quantize(forward, Quantization("int8", smallest=4000))
    assert set(report.quantized) == {"mix.weight.int8", "words.weight.int8"}
    assert quantize(forward, Quantization("fp32"))[0] == forward


class Readers(nn.Module):
    """Frozen tensors that no integer kernel reads, beside one that is quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(40, 60)
        self.scale = nn.Parameter(torch.randn(60))
        self.other = nn.Parameter(torch.randn(1, 5, 60))
        self.depthwise = nn.Conv1d(60, 60, 3, padding=1, groups=60, bias=False)
        self.bias = nn.Parameter(torch.zeros(60))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.where(x.sum(-1, keepdim=True) > 0, self.line(x) * self.scale, self.other)
        return self.depthwise(y.transpose(1, 2)).transpose(1, 2) + self.bias


def test_a_large_float_tensor_is_quantized_or_has_a_reason() -> None:
    """Nothing stays float in silence: of each frozen tensor the report knows either the integers or the reason."""
    torch.manual_seed(0)
    model = Readers().requires_grad_(False)
    model.bias.requires_grad_(True)
    forward = from_torch(model, torch.zeros(2, 5, 40))
    _, report = quantize(forward, Quantization("int8", smallest=50))
    large = {
        str(value.name).removesuffix(".T") for value in forward.model.graph.initializers.values() if _size(value) >= 50
    }
    assert {*report.kept, *(name.removesuffix(".int8") for name in report.quantized)} == large
    assert report.kept["other"] == "read by Where, which has no integer form"
    assert report.kept["depthwise.weight"].startswith("a kernel of one channel")
    assert report.kept["scale"] == report.kept["line.bias"] == "a vector"
    assert "line.bias, scale stay fp32: a vector" in report.lines()


@pytest.mark.parametrize("compute", ["int8", "int4"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit", "cnn"])
def test_the_tensors_of_a_network_are_quantized_or_kept(name: str, compute: str) -> None:
    """All large float tensors of each network are in the report, once, and in the graph only where it says so."""
    forward = _exported(name)[1]
    packed, report = quantize(forward, Quantization(compute, smallest=64))
    large = [v for v in forward.model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT and _size(v) >= 64]
    names = {str(value.name).removesuffix(".T") for value in large}
    quantized = {tensor.removesuffix(".int8").removesuffix(".int4") for tensor in report.quantized}
    assert names == quantized | set(report.kept) and not quantized & set(report.kept)
    assert not [
        value for value in large if packed.model.graph.initializers.get(str(value.name)) and _base(value) in quantized
    ]


def _base(value: ir.Value) -> str:
    return str(value.name).removesuffix(".T")


BAD = {
    "compute": "int3",
    "gradient": "none",
    "block": 17,
    "smallest": 0,
    "tolerance": 0.0,
}


@pytest.mark.parametrize("name", BAD)
def test_settings_out_of_range_are_refused(name: str) -> None:
    """The error names the setting, its value and the choices."""
    with pytest.raises(BadSetting, match=f"{name} = {BAD[name]!r}"):
        Quantization(**{name: BAD[name]})  # type: ignore[arg-type]


def test_what_cannot_be_quantized_is_said() -> None:
    """A pattern that fits nothing, a model without frozen weights, calibration data that does not fit."""
    forward = _tables()
    with pytest.raises(QuantizeError, match="No weight that would be quantized fits 'decoder'"):
        quantize(forward, Quantization("int8", keep=("decoder",)))
    with pytest.raises(QuantizeError, match="no frozen weight"):
        quantize(from_torch(nn.Linear(4, 4), torch.zeros(1, 4)), Quantization("int8"))
    with pytest.raises(NoCalibration, match="empty"):
        quantize(forward, Quantization("int8"), [])
    with pytest.raises(QuantizeError, match="lacks the input 'ids'"):
        quantize(forward, Quantization("int8"), [{"words": np.zeros((2, 2))}])
    with pytest.raises(QuantizeError, match="cannot be run"):
        quantize(forward, Quantization("int8"), [{"ids": np.zeros((2, 2), np.float32)}])


def test_the_most_sensitive_weight_stays_fp32() -> None:
    """With a tolerance that one weight alone breaks, calibration spares that weight and no other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    with torch.no_grad():
        model[2].weight[:, 0] *= 3000  # one large column per row: the others vanish in the row's step
        model[0].weight[0] = 0
        model[0].bias[0] = -1
    model.requires_grad_(False)
    model[4].bias.requires_grad_(True)
    forward = from_torch(model, torch.zeros(2, 64))
    batches = [{"input": RNG.normal(size=(16, 64)).astype(np.float32)} for _ in range(2)]
    _, report = quantize(forward, Quantization("int8", tolerance=0.1), batches)
    assert set(report.kept) == {"2.weight"}
    _, report = quantize(forward, Quantization("int8", tolerance=1e-9), batches)
    assert len(report.kept) == 3


def _rounded_twin(model: nn.Module, compute: str, packed: list[str]) -> nn.Module:
    """Return the torch model with the dequantized weights."""
    state = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name in packed:
            weight = state[name].numpy()
            conv1d = name.endswith(("c_attn.base_layer.weight", "c_fc.weight", "c_proj.weight"))  # [in, out]
            rows = weight.T if conv1d else weight
            if rows.ndim > 2 or compute == "int8":
                int8 = to_int8(rows, 0)
                values = int8.values * int8.scale.reshape(-1, *[1] * (rows.ndim - 1))
            else:
                values = _unpacked4(rows, 32)
            state[name].copy_(torch.from_numpy(np.ascontiguousarray(values.T if conv1d else values)))
    return model


@cache
def _exported(name: str) -> tuple[nn.Module, Forward]:
    network = ALL[name]
    method = BitFit() if network.lora is None else Lora(rank=8, alpha=16, target_modules=network.lora)
    model = attach(method, network.model())
    return model, from_torch(model, network.example())


OFTEN = ("bert", "gpt2", "llama", "vit", "cnn")
SELDOM = ("neox", "t5", "moe", "residual-cnn", "lstm", "gru", "mlp", "recommender")
FAR = {"vit": 1e-2, "recommender": 1e-2}
"""Bounds of networks whose losses are farther from those on dequantized weights: activations are rounded too."""


@pytest.mark.parametrize(
    ("name", "compute"),
    [
        *((name, compute) for name in OFTEN for compute in ("int8", "int8-row", "int4")),
        *(pytest.param(name, "int8", marks=pytest.mark.slow) for name in SELDOM),
    ],
)
def test_training_on_a_quantized_base_follows_torch(name: str, compute: str, tmp_path: Path) -> None:
    """Twenty losses are those of PyTorch with the rounded weights, and the parameters move the same way."""
    kind, _, gradient = compute.partition("-")
    model, exported = _exported(name)
    forward, report = quantize(exported, Quantization(kind, smallest=64, gradient=gradient or "tensor"))
    assert report.quantized
    loss = losses.by_name(ALL[name].loss)
    bundle = write_bundle(compile_step(forward, loss, SGD(lr=0.05)), loss, SGD(lr=0.05), tmp_path / "b")
    twin = _rounded_twin(copy.deepcopy(model), kind, [name.rpartition(".")[0] for name in report.quantized]).eval()
    with Trainer.open(bundle) as trainer:
        for ours, theirs in _losses(trainer, twin, ALL[name]):
            assert ours == pytest.approx(theirs, rel=2e-2 if kind == "int4" else FAR.get(name, 3e-3))
        trained = trainer.parameters()
    state, start = dict(twin.named_parameters()), Bundle.open(bundle).adapter()
    ours = np.concatenate([(trained[n] - start[n]).ravel() for n in trained])
    theirs = np.concatenate([(state[n].detach().numpy() - start[n]).ravel() for n in trained])
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.98


def _losses(trainer: Trainer, twin: nn.Module, network: Network) -> Iterator[tuple[float, float]]:
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.05)
    for inputs, labels in network.batches(20):
        optimizer.zero_grad()
        loss = torch_loss(twin, inputs, labels, network.loss)
        loss.backward()
        optimizer.step()
        yield trainer.step(to_numpy(inputs, labels)), loss.item()


@pytest.mark.parametrize("compute", ["int8", "int4"])
def test_weights_stay_quantized_in_onnxruntime(compute: str, tmp_path: Path) -> None:
    """Nothing is dequantized into a constant at load: the session's graph has no large fp32 matrix."""
    forward, _ = quantize(_exported("bert")[1], Quantization(compute, smallest=64))
    loss = losses.by_name("cross_entropy")
    write_bundle(compile_step(forward, loss, SGD(lr=0.05)), loss, SGD(lr=0.05), tmp_path / "b")
    for graph in ("train", "eval", "infer"):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "b" / f"{graph}.optimized")
        ort.InferenceSession(str(tmp_path / "b" / f"{graph}.onnx"), options)
        loaded = onnx.load(tmp_path / "b" / f"{graph}.optimized", load_external_data=False)
        large = [
            t.name for t in loaded.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) > 500
        ]
        assert not large


def test_the_bundle_shrinks_and_describes_its_tensors(tmp_path: Path) -> None:
    """int8 is a quarter of fp32, int4 less; a table and its tied head are stored once."""
    sizes = {}
    for compute in ("fp32", "int8", "int4"):
        forward, report = quantize(_tables(), Quantization(compute))
        compiled = compile_step(forward, CrossEntropy(), SGD(lr=0.1))
        bundle = write_bundle(
            compiled, CrossEntropy(), SGD(lr=0.1), tmp_path / compute, Extras(quantized=report.quantized)
        )
        frozen = Bundle.open(bundle).manifest.stored
        sizes[compute] = sum(entry.bytes for entry in frozen)
        assert sum(entry.elements or 0 for entry in frozen) == (0 if compute == "fp32" else 4800 + 2 * 3840 + 9600)
    assert sizes["int8"] < 0.3 * sizes["fp32"]
    assert sizes["int4"] < 0.25 * sizes["fp32"]  # the kernel and the tied table have 8 bits


def test_a_rule_that_unpacks_a_weight_into_the_graph_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler stores no float copy of a quantized tensor."""

    honest = RULES["edgepeft.Int8MatMul"].function

    def unpacking(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
        dx, *rest = honest(node, upstream, emit)
        copy = emit.stored("copy", np.zeros((80, 80), np.float32))
        return (emit.op("Add", dx, emit.op("ReduceMax", copy, keepdims=0)), *rest)

    forward, _ = quantize(_tables(), Quantization("int8", keep=("words", "mix")))
    monkeypatch.setitem(RULES, "edgepeft.Int8MatMul", Rule(unpacking, broadcasts=False, outputs=None))
    with pytest.raises(DequantizedTensor, match="copy, 6,400 float elements"):
        compile_step(forward, CrossEntropy(), SGD(lr=0.1))


def test_an_encoder_keeps_one_scale_per_tensor() -> None:
    """No activation of a small BERT needs a scale per row, so its graphs stay as fast as they can be."""
    assert quantize(_exported("bert")[1], Quantization("int8", smallest=64))[1].rows == {}
