"""A file that is quantized already is raised to a graph that means the same, packs the same bytes, and trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import edgepeft
from edgepeft_export import losses, optimizers
from edgepeft_export.compile import Compiled, compile_step
from edgepeft_export.forward import Forward, from_onnx
from edgepeft_export.forward.onnx_source.lora import GraphLora
from edgepeft_export.graph.custom_ops import CONTRIB, DOMAIN, FAKE_QUANTIZE
from edgepeft_export.graph.edit import replace_value
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.quantize import Quantization, quantize
from edgepeft_runtime import Trainer
from tests.support.onnx_networks import KINDS, arrays, batch, packed, quantized, write

LORA = GraphLora(rank=4)
EXACT = onnxruntime.SessionOptions()
EXACT.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
"""As in the file: fused integer kernels of x86 without VNNI saturate sums at 16 bits."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The network, quantized in every way."""
    source = write(tmp_path_factory.mktemp("onnx") / "fp32.onnx")
    return {"fp32": source, **{kind: quantized(source, kind) for kind in KINDS}}


def _compiled(forward: Forward) -> Compiled:
    return compile_step(forward, losses.by_name("cross_entropy"), optimizers.AdamW())


def _run(model: ir.Model, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), EXACT)
    wanted = {value.name for value in session.get_inputs()}
    found = session.run(None, {name: array for name, array in feed.items() if name in wanted})
    return dict(zip([value.name for value in session.get_outputs()], found, strict=True))


def _gradients(forward: Forward, parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    compiled = _compiled(forward)
    found = _run(compiled.graphs["train"], {**batch(), **parameters})
    gradients: dict[str, np.ndarray] = {}
    for bucket in compiled.buckets:
        ends = np.cumsum([parameters[name].size for name in bucket.members])
        gradients.update(zip(bucket.members, np.split(found[bucket.gradient], ends[:-1]), strict=True))
    return gradients


@pytest.mark.parametrize("kind", KINDS)
def test_a_raised_graph_has_the_scores_of_the_file(kind: str, files: dict[str, Path]) -> None:
    """Within one step of rounding; LoRA starts at zero, so attaching it changes nothing."""
    session = onnxruntime.InferenceSession(files[kind], EXACT)
    (expected,) = session.run(None, {"image": batch()["image"]})
    forward = from_onnx(files[kind], (), LORA)
    found = _run(_compiled(forward).graphs["infer"], {**batch(), **forward.parameters})["scores"]
    # Kernels of integers may be cut off in the file's own products, which are exact here.
    tolerance = {"dynamic": 0.05, "dynamic-channels": 0.05, "dynamic-uint8": 0.02}.get(kind, 1e-5)
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def _stored(model: ir.Model) -> set[bytes]:
    return {v.const_value.tobytes() for v in model.graph.initializers.values() if v.const_value is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_the_quantized_tensors_are_those_of_the_file(kind: str, files: dict[str, Path]) -> None:
    """Raising changes only operators: each quantized weight is in the train graph bytewise, without an fp32 copy."""
    forward = from_onnx(files[kind], (), LORA)
    kept = packed(files[kind])
    assert len(kept) >= (1 if "int4" in kind or "blocks" in kind else 5)
    counted = quantize(forward, Quantization())[1].quantized  # with true sizes
    assert kept.keys() <= counted.keys() and {item.kind for item in counted.values()} <= {"int8", "int4"}
    train = _compiled(forward).graphs["train"]
    assert set(kept.values()) <= _stored(train)
    assert not any("weight" in str(name) and f"{name}_quantized" in kept for name in train.graph.initializers)
    assert all(node.domain in ("", CONTRIB) for node in train.graph)


ALL = GraphLora(rank=4, targets=["stem", "block", "mix", "dense", "head"], train_head=False)


def _started(forward: Forward, size: float) -> dict[str, np.ndarray]:
    """Pairs that say something, so that a gradient reaches A too."""
    draw = np.random.default_rng(2)
    moved = {
        name: np.asarray(array, np.float32) + size * draw.normal(size=array.shape)
        for name, array in forward.parameters.items()
    }
    return {name: array.astype(np.float32) for name, array in moved.items()}


def _cosines(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, float]:
    assert one.keys() == other.keys()
    size = np.linalg.norm
    return {name: float(g @ other[name] / size(g) / size(other[name])) for name, g in one.items()}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("qdq")])
def test_the_gradient_crosses_quantized_matmuls(kind: str, files: dict[str, Path]) -> None:
    """It points where the fp32 network's does."""
    exact = from_onnx(files["fp32"], (), ALL)
    parameters = _started(exact, 0.02)
    found = _gradients(from_onnx(files[kind], (), ALL), parameters)
    assert min(_cosines(_gradients(exact, parameters), found).values()) > 0.95


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("qdq")])
def test_the_gradient_crosses_rounded_activations(kind: str, files: dict[str, Path]) -> None:
    """It points where it would if activations were cut off at the calibrated range, and not rounded."""
    rounded, clipped = from_onnx(files[kind], (), ALL), from_onnx(files[kind], (), ALL)
    parameters = _started(rounded, 0.002)
    _clip_instead(clipped.model.graph)
    assert min(_cosines(_gradients(clipped, parameters), _gradients(rounded, parameters)).values()) > 0.98


def _clip_instead(graph: ir.Graph) -> None:
    emit = Emitter(graph)
    for node in [node for node in graph if node.op_type == FAKE_QUANTIZE]:
        x, scale, zero_point = node.inputs
        assert scale is not None and scale.const_value is not None
        assert zero_point is not None and zero_point.const_value is not None
        step, middle = scale.const_value.numpy(), zero_point.const_value.numpy().astype(np.float32)
        limits = np.iinfo(zero_point.const_value.numpy().dtype)
        low, high = (emit.constant(np.array((edge - middle) * step, np.float32)) for edge in (limits.min, limits.max))
        replace_value(node.outputs[0], emit.op("Clip", x, low, high))
        graph.remove(node, safe=True)
    graph.sort()


def test_names_are_the_same_however_a_file_is_quantized(files: dict[str, Path]) -> None:
    """An adapter's name comes from the weight, or, where that is anonymous, from the bias."""
    names = {f"{name}.lora_{letter}" for name in ("stem", "block", "mix", "dense") for letter in "AB"}
    for kind, path in files.items():
        found = from_onnx(path, (), LORA).parameters
        head = {"head.lora_A", "head.lora_B"} if kind.startswith(("qdq", "dynamic")) else {"head.weight", "head.bias"}
        assert set(found) == names | head, kind


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_quantized_look_up_table_stays_quantized(symmetric: bool, tmp_path: Path) -> None:
    """GatherBlockQuantized, which older ONNX Runtimes lack, becomes a look-up of the same bytes."""
    draw = np.random.default_rng(0)
    weights = {"table": draw.normal(size=(20, 48)), "w": draw.normal(size=(48, 32)), "v": draw.normal(size=(32, 5))}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], "look-up"),
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "v"], ["y"], "second"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["N", "T"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", "T", 5])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    axes = (("MatMul", 0), ("Gather", 1))
    quantizer = MatMulNBitsQuantizer(
        model, block_size=32, is_symmetric=symmetric, op_types_to_quantize=("MatMul", "Gather"), quant_axes=axes
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(tmp_path / "m.onnx"))
    ids = draw.integers(0, 20, (3, 7))
    (expected,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"ids": ids})
    forward = from_onnx(tmp_path / "m.onnx", (), GraphLora(targets=["first"]))
    assert not any(node.op_type == "GatherBlockQuantized" for node in forward.model.graph)
    infer = _compiled(forward).graphs["infer"]
    found = _run(infer, {"ids": ids, **forward.parameters})["y"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    table = next(t for t in quantizer.model.model.graph.initializer if t.name.startswith("table_Q4"))
    assert ir.from_proto(table).tobytes() in _stored(infer)


def test_adapters_that_a_file_brings_can_train(tmp_path: Path) -> None:
    """MatMulNBits with LoRA weights as initializers, Olive's layout: named, they train, and no second pair is added."""
    source = quantized(write(tmp_path / "m.onnx"), "int4")
    model = onnx.load(source)
    product = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    draw, target = np.random.default_rng(0), product.output[0]
    product.output[0] = "base"
    for name, shape in {"mix.lora_A.weight": (16, 4), "mix.lora_B.weight": (4, 32)}.items():
        model.graph.initializer.append(numpy_helper.from_array(draw.normal(size=shape).astype(np.float32), name))
    at = list(model.graph.node).index(product) + 1
    for node in (
        helper.make_node("Add", ["base", "up"], [target], "sum"),
        helper.make_node("MatMul", ["down", "mix.lora_B.weight"], ["up"], "lora_B"),
        helper.make_node("MatMul", [product.input[0], "mix.lora_A.weight"], ["down"], "lora_A"),
    ):
        model.graph.node.insert(at, node)
    onnx.save(model, tmp_path / "olive.onnx")
    forward = from_onnx(tmp_path / "olive.onnx", ["*lora_*"])
    assert set(forward.parameters) == {"mix.lora_A.weight", "mix.lora_B.weight"}
    assert all(np.any(g) for g in _gradients(forward, dict(forward.parameters)).values())
    attached = from_onnx(tmp_path / "olive.onnx", (), LORA)
    assert not any("lora_A.lora" in name or "lora_A.weight" in name for name in attached.parameters)


def test_a_float_model_is_read_as_before(files: dict[str, Path]) -> None:
    """Without LoRA and quantized tensors, only named weights train, at the operator set of every bundle."""
    forward = from_onnx(files["fp32"], ["head.*"])
    assert set(forward.parameters) == {"head.weight", "head.bias"}
    assert forward.model.graph.opset_imports[""] == 20 and DOMAIN not in forward.model.graph.opset_imports
    np.testing.assert_array_equal(forward.parameters["head.weight"], arrays()["head.weight"])


@pytest.mark.parametrize("per_channel", [False, True])
def test_lora_reaches_a_dynamically_quantized_recognizer(tmp_path: Path, per_channel: bool) -> None:
    """``quantize_dynamic`` writes ConvInteger, DynamicQuantizeLSTM and MatMulInteger, which get pairs."""
    network = _Recognizer().eval()
    x = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(0))
    plain, path = tmp_path / "plain.onnx", tmp_path / "quantized.onnx"
    torch.onnx.export(network, (x,), plain, input_names=["x"], dynamic_axes={"x": {0: "n"}}, dynamo=False)
    quantize_dynamic(plain, path, op_types_to_quantize=["Conv", "LSTM", "MatMul"], per_channel=per_channel)
    assert {"ConvInteger", "DynamicQuantizeLSTM", "MatMulInteger"} <= {n.op_type for n in onnx.load(path).graph.node}
    edgepeft.prepare(path, {"x": x.numpy()}, loss="cross_entropy", method="lora", out=tmp_path / "bundle")
    batch = {"x": x.numpy(), "labels": np.array([0, 1, 2])}
    with Trainer.open(tmp_path / "bundle") as trainer:
        losses = [trainer.step(batch, lr=0.05) for _ in range(15)]
        after, trained = trainer.predict({"x": x.numpy()}), trainer.parameters()
        trainer.save_update(tmp_path / "update.safetensors")
    assert losses[-1] < 0.3 * losses[0]
    assert {"conv", "lstm"} <= {name.split(".")[0] for name in trained}
    out = edgepeft.merge(tmp_path / "bundle", tmp_path / "update.safetensors", to="onnx", out=tmp_path / "merged.onnx")
    (merged,) = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(merged, next(iter(after.values())), rtol=1e-4, atol=1e-5)


class _Recognizer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv1d(6, 16, 3, padding=1)
        self.lstm = torch.nn.LSTM(16, 12, bidirectional=True)
        self.head = torch.nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(torch.relu(self.conv(x)).permute(2, 0, 1))
        return self.head(states[-1])


def test_a_bias_in_steps_of_the_scales_is_a_bias(tmp_path: Path) -> None:
    """Older quantizers add a convolution's bias to the integers, divided by the scales and rounded down."""
    text = """<ir_version: 8, opset_import: ["": 13]> g (float[n, 3, 6, 6] x) => (float[n, 4, 4, 4] y)
    <float s = {0.02}, int8 z = {0}, int64[4] shape = {1, 4, 1, 1}> {
        q, qs, qz = DynamicQuantizeLinear(x)
        step = Mul(qs, s)
        steps = Div(b, step)
        floor = Floor(steps)
        whole = Cast<to = 6>(floor)
        product = ConvInteger(q, w, qz, z)
        wide = Reshape(whole, shape)
        sum = Add(product, wide)
        float = Cast<to = 1>(sum)
        again = Mul(qs, s)
        y = Mul(float, again)
    }"""
    model, draw = onnx.parser.parse_model(text), np.random.default_rng(0)
    weight = draw.integers(-60, 60, (4, 3, 3, 3)).astype(np.int8)
    bias = draw.normal(size=4).astype(np.float32)
    model.graph.initializer.extend([numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")])
    onnx.save(model, tmp_path / "model.onnx")
    forward = from_onnx(tmp_path / "model.onnx", lora=GraphLora(rank=4, targets=["w"]))
    assert not [node for node in forward.model.graph if node.op_type in ("ConvInteger", "Floor")]
    x = draw.normal(size=(2, 3, 6, 6)).astype(np.float32)
    found = _run(forward.model, {"x": x, **forward.parameters})["y"]
    images, kernel = torch.from_numpy(x), torch.from_numpy(weight.astype(np.float32)) * 0.02
    expected = torch.nn.functional.conv2d(images, kernel, torch.from_numpy(bias))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)
