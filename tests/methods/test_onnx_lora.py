"""LoRA on the graph of an .onnx file, end to end: torch gives the same losses, and packed bytes stay untouched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import edgepeft
from edgepeft_export import losses, optimizers
from edgepeft_export.bundle import Extras, write_bundle
from edgepeft_export.compile import compile_step
from edgepeft_export.errors import ForwardError
from edgepeft_export.forward import Forward, from_onnx
from edgepeft_export.forward.onnx_source.lora import GraphLora
from edgepeft_runtime import Bundle, Trainer
from edgepeft_runtime.errors import BadSetting
from tests.support.onnx_networks import KINDS, arrays, batch, packed, quantized, scores, write


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("onnx") / "fp32.onnx")


def _bundle(forward: Forward, out: Path) -> Path:
    loss, optimizer = losses.by_name("cross_entropy"), optimizers.AdamW(lr=1e-2, weight_decay=0.0)
    return write_bundle(compile_step(forward, loss, optimizer), loss, optimizer, out, Extras())


def _trained(bundle: Path, folder: Path, steps: int = 10) -> tuple[Path, list[float], np.ndarray]:
    """The update, the losses, and the scores after the last step."""
    with Trainer.open(bundle, state=folder / "state") as trainer:
        found = [trainer.step(batch()) for _ in range(steps)]
        after = trainer.predict({"image": batch()["image"]})["scores"]
        trainer.save_update(folder / "update.safetensors")
    return folder / "update.safetensors", found, after


def test_lora_on_the_graph_trains_as_in_torch(source: Path, tmp_path: Path) -> None:
    """Convolutions, a MatMul and Gemms with pairs, the whole head: ten steps of AdamW, the same losses."""
    forward = from_onnx(source, (), GraphLora(rank=4))
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in {**arrays(), **forward.parameters}.items()}
    trained = [tensors[name].requires_grad_() for name in forward.parameters]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    expected = []
    image, labels = (torch.from_numpy(array) for array in batch().values())
    for _ in range(10):
        loss = nn.functional.cross_entropy(scores(image, tensors), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    _, found, _ = _trained(_bundle(forward, tmp_path / "b"), tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert expected[-1] < 0.9 * expected[0]


def test_pairs_with_float_weights_fold_when_merged(source: Path, tmp_path: Path) -> None:
    """Nothing of the branches is left, of the convolutions neither, and the scores are the device's."""
    bundle = _bundle(from_onnx(source, (), GraphLora(rank=4)), tmp_path / "b")
    update, _, after = _trained(bundle, tmp_path)
    merged = edgepeft.merge(bundle, update, to="onnx", out=tmp_path / "merged.onnx")
    model = onnx.load(merged)
    assert len(model.graph.node) == len(onnx.load(source).graph.node)
    assert not any("lora" in tensor.name for tensor in model.graph.initializer)
    np.testing.assert_allclose(_run(merged), after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_file_trains_and_keeps_its_bytes(kind: str, source: Path, tmp_path: Path) -> None:
    """Source, bundle and merged file contain the same packed tensors. The merged file gives the device's scores."""
    file = quantized(source, kind)
    bundle = _bundle(from_onnx(file, (), GraphLora(rank=4)), tmp_path / "b")
    update, found, after = _trained(bundle, tmp_path, steps=15)
    assert found[-1] < found[0]
    said: list[str] = []
    merged = edgepeft.merge(bundle, update, to="onnx", out=tmp_path / "merged.onnx", on_progress=said.append)
    assert "kept beside quantized ones" in said[0]
    before = set(packed(file).values())
    assert before and before <= set(packed(merged).values())
    for name in ("train", "eval", "infer"):
        assert before <= set(packed(Bundle.open(bundle).file(f"{name}.onnx")).values())
    assert {node.domain for node in onnx.load(merged).graph.node} <= {"", "com.microsoft"}
    np.testing.assert_allclose(_run(merged), after, rtol=1e-3, atol=1e-3)


def _run(model: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": batch()["image"]})[0])


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["dense", "stem"], {"dense", "stem"}),
        (["*MatMul_57"], {"mix"}),  # the weight's own name
        (["MatMul_7"], {"mix"}),  # the node's
        (["dense.weight", "head"], {"dense", "head"}),
    ],
)
def test_targets_are_names_of_weights_modules_or_nodes(targets: list[str], expected: set[str], source: Path) -> None:
    """Names and patterns as a user reads them off the file; the head is one where it does not train whole."""
    lora = GraphLora(targets=targets, train_head=False)
    assert {name.rpartition(".lora_")[0] for name in from_onnx(source, (), lora).parameters} == expected


def test_a_target_that_fits_nothing_is_refused(source: Path) -> None:
    """The error names it, and the existing layers with their sizes."""
    with pytest.raises(ForwardError) as failure:
        from_onnx(source, (), GraphLora(targets=["dense", "query"]))
    assert failure.value.code == "no-such-matmul"
    assert "query" in failure.value.message and "dense," not in failure.value.message
    assert "mix [16, 32]" in str(failure.value)


def test_a_rank_below_one_is_refused(source: Path) -> None:
    """It would be a matrix without columns."""
    with pytest.raises(BadSetting, match="rank = 0"):
        from_onnx(source, (), GraphLora(rank=0))


def test_the_first_values_depend_on_the_seed_and_the_name_only(source: Path) -> None:
    """Adding a target leaves the others' first values; another seed changes them; B is zero."""
    alone = from_onnx(source, (), GraphLora(targets=["dense"])).parameters
    both = from_onnx(source, (), GraphLora(targets=["mix", "dense"])).parameters
    other = from_onnx(source, (), GraphLora(targets=["dense"], seed=1)).parameters
    np.testing.assert_array_equal(alone["dense.lora_A"], both["dense.lora_A"])
    assert not np.array_equal(alone["dense.lora_A"], other["dense.lora_A"])
    assert not np.any(alone["dense.lora_B"])
    assert np.abs(alone["dense.lora_A"]).max() <= 1 / np.sqrt(32)


def test_products_of_a_shared_weight_share_a_pair(tmp_path: Path) -> None:
    """As modules that share a layer do in peft; the model's output keeps its name."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "one"),
        helper.make_node("MatMul", ["h", "w"], ["y"], "two"),
    ]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    forward = from_onnx(tmp_path / "m.onnx", (), GraphLora(rank=2))
    assert list(forward.parameters) == ["w.lora_A", "w.lora_B"]
    assert forward.outputs == ("y",)
    x = np.ones((3, 4), np.float32)
    session = onnxruntime.InferenceSession(ir.to_proto(forward.model).SerializeToString())
    np.testing.assert_allclose(session.run(None, {"x": x, **forward.parameters})[0], x)


@pytest.mark.parametrize("bias", [True, False])
def test_a_merged_int8_file_is_a_base_again(tmp_path: Path, bias: bool) -> None:
    """Its matrices are stored transposed: they are found, adapted, and compute the same as the file."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64, bias=bias), nn.ReLU(), nn.Linear(64, 64, bias=bias), nn.Linear(64, 3))
    lora = edgepeft.Lora(rank=2, target_modules=("0",))
    edgepeft.prepare(model, {"input": torch.zeros(2, 32)}, method=lora, compute="int8", out=tmp_path / "first")
    with Trainer.open(tmp_path / "first") as trainer:
        trainer.step({"input": np.ones((2, 32), np.float32), "labels": np.array([0, 1])})
        trainer.save_update(tmp_path / "u.safetensors")
    edgepeft.merge(tmp_path / "first", tmp_path / "u.safetensors", to="onnx", out=tmp_path / "m.onnx")
    edgepeft.prepare(tmp_path / "m.onnx", method="lora", out=tmp_path / "again")
    x = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    first = Trainer.open(tmp_path / "first", adapter=tmp_path / "u.safetensors")
    with first as one, Trainer.open(tmp_path / "again") as other:
        a, b = (next(iter(trainer.predict({"input": x}).values())) for trainer in (one, other))
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
