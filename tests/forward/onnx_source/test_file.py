"""An existing .onnx file is a source: some of its initializers become inputs that train."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

import edgepeft
from edgepeft_export.errors import ForwardError, NotAModel
from edgepeft_export.forward import from_onnx
from edgepeft_export.losses.custom import OnnxLoss
from edgepeft_export.opset import OPSET
from edgepeft_runtime import Bundle, Trainer
from edgepeft_runtime.errors import EdgepeftError
from tests.support.onnx_runs import session

SHAPES = {"encoder.weight": (4, 6), "encoder.bias": (6,), "norm.scale": (6,), "norm.bias": (6,), "head.weight": (6, 3)}

BODY = {
    # ReduceMean has its axes as an attribute here, from opset 18 on as an input.
    13: """
        h = MatMul(x, encoder.weight)
        a = Add(h, encoder.bias)
        t = Tanh(a)
        m = ReduceMean <axes = [1]> (t)
        c = Sub(t, m)
        s = Mul(c, norm.scale)
        n = Add(s, norm.bias)
        logits = MatMul(n, head.weight)
    """,
    17: """
        h = MatMul(x, encoder.weight)
        a = Add(h, encoder.bias)
        t = Tanh(a)
        n = LayerNormalization <axis = -1> (t, norm.scale, norm.bias)
        logits = MatMul(n, head.weight)
    """,
}


def _arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def _model(opset: int, *, listed: bool = False) -> onnx.ModelProto:
    """A small network of an older operator set; with ``listed``, its initializers are inputs too, as before IR 4."""
    body = BODY[opset]
    for name in SHAPES:  # the parser rejects dots
        body = body.replace(name, name.replace(".", "_"))
    declared = ", ".join(f"float[{', '.join(map(str, s))}] {n.replace('.', '_')}" for n, s in SHAPES.items())
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]>'
        f"g (float[N, 4] x, {declared}) => (float[N, 3] logits) {{ {body} }}"
    )
    back = {name.replace(".", "_"): name for name in SHAPES}
    for node in model.graph.node:
        node.input[:] = [back.get(name, name) for name in node.input]
    del model.graph.input[1:]
    for name, array in _arrays().items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
        if listed:
            model.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape))
    return model


def _write(path: Path, model: onnx.ModelProto, *, external: bool = False) -> Path:
    settings = {"save_as_external_data": True, "location": "big.data", "size_threshold": 0} if external else {}
    onnx.save(model, path, **settings)
    return path


def _torch(opset: int, x: Tensor, p: dict[str, Tensor]) -> Tensor:
    t = torch.tanh(x @ p["encoder.weight"] + p["encoder.bias"])
    if opset == 17:
        t = nn.functional.layer_norm(t, (6,), p["norm.scale"], p["norm.bias"])
    else:
        t = (t - t.mean(1, keepdim=True)) * p["norm.scale"] + p["norm.bias"]
    return t @ p["head.weight"]


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("form", ["plain", "listed", "external"])
def test_an_older_file_trains_as_torch_does(opset: int, form: str, tmp_path: Path) -> None:
    """Files of opset 13 and 17 are converted; initializers may be listed as inputs, or be stored in a second file."""
    path = _write(tmp_path / "m.onnx", _model(opset, listed=form == "listed"), external=form == "external")
    prepared = edgepeft.prepare(path, trainable=["encoder.*", "norm.scale"], optimizer="sgd", out=tmp_path / "b")
    assert prepared.trainable == 24 + 6 + 6
    tensors = {name: torch.from_numpy(array) for name, array in _arrays().items()}
    trained = [tensors[name].requires_grad_() for name in ("encoder.weight", "encoder.bias", "norm.scale")]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    draw = torch.Generator().manual_seed(0)
    with Trainer.open(tmp_path / "b") as trainer:
        for rows in (3, 1, 5):
            x, labels = torch.randn(rows, 4, generator=draw), torch.randint(0, 3, (rows,), generator=draw)
            loss = nn.functional.cross_entropy(_torch(opset, x, tensors), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert trainer.step({"x": x.numpy(), "labels": labels.numpy()}) == pytest.approx(loss.item(), rel=1e-5)


def test_names_and_patterns_choose_what_trains(tmp_path: Path) -> None:
    """Matching initializers become inputs with their initial values; all others stay initializers."""
    forward = from_onnx(_write(tmp_path / "m.onnx", _model(17)), ["*.bias", "head.weight"])
    assert set(forward.parameters) == {"encoder.bias", "norm.bias", "head.weight"}
    assert forward.inputs == ("x",)
    assert {"encoder.weight", "norm.scale"} <= set(forward.model.graph.initializers)
    assert forward.model.graph.opset_imports[""] == OPSET
    for name, array in forward.parameters.items():
        np.testing.assert_array_equal(array, _arrays()[name])


def test_the_file_is_left_as_it_was(tmp_path: Path) -> None:
    """Preparing reads it, and writes nothing next to it."""
    (tmp_path / "models").mkdir()
    path = _write(tmp_path / "models" / "m.onnx", _model(17))
    before = path.read_bytes()
    edgepeft.prepare(path, trainable=["head.weight"], out=tmp_path / "b")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["m.onnx"]


def test_the_bundle_does_not_need_the_file_any_more(tmp_path: Path) -> None:
    """External data is copied into weights.bin: the bundle stands alone."""
    wide = numpy_helper.from_array(np.ones((3, 100), np.float32), "wide")  # too large to stay in the graph
    model = _model(17)
    model.graph.initializer.append(wide)
    model.graph.node.append(helper.make_node("MatMul", ["logits", "wide"], ["far"]))
    model.graph.output.append(helper.make_tensor_value_info("far", onnx.TensorProto.FLOAT, ["N", 100]))
    path = _write(tmp_path / "m.onnx", model, external=True)
    edgepeft.prepare(path, trainable=["head.weight"], out=tmp_path / "b")
    path.unlink()
    (tmp_path / "big.data").unlink()
    with Trainer.open(tmp_path / "b") as trainer:
        found = trainer.predict({"x": np.ones((2, 4), np.float32)})
    np.testing.assert_allclose(found["far"], found["logits"].sum(1, keepdims=True).repeat(100, 1), rtol=1e-5)
    assert Bundle.open(tmp_path / "b").manifest.files["weights.bin"].bytes == 1200
    assert Bundle.open(tmp_path / "b").manifest.provenance == {"method": "onnx", "trainable": ["head.weight"]}


@pytest.mark.parametrize("patterns", [["head.bias"], ["encoder.*", "decoder.*"], []])
def test_a_pattern_that_matches_nothing_is_refused(patterns: list[str], tmp_path: Path) -> None:
    """The error names the patterns without a match, and the existing names."""
    with pytest.raises(ForwardError) as failure:
        from_onnx(_write(tmp_path / "m.onnx", _model(17)), patterns)
    assert failure.value.code == "unknown-initializer"
    assert "head.weight" in str(failure.value)
    assert not patterns or patterns[-1] in failure.value.message


def test_initializers_of_other_types_do_not_train(tmp_path: Path) -> None:
    """A float16 matrix is not a parameter, for any pattern."""
    model = _model(17)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((2, 2), np.float16), "half.weight"))
    path = _write(tmp_path / "m.onnx", model)
    assert "half.weight" not in from_onnx(path, ["*.weight"]).parameters
    with pytest.raises(ForwardError):
        from_onnx(path, ["half.weight"])


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    """Other bytes, and a model whose external data is missing."""
    (tmp_path / "no.onnx").write_bytes(b"no model")
    lacking = _write(tmp_path / "lacking.onnx", _model(17), external=True)
    (tmp_path / "big.data").unlink()
    for path in (tmp_path / "no.onnx", lacking):
        with pytest.raises(NotAModel) as failure:
            from_onnx(path, ["head.weight"])
        assert failure.value.code == "not-a-model"
        assert str(path) in str(failure.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in its files")
@pytest.mark.parametrize("name", ["big.data", "m.onnx"])
def test_pipe_in_place_of_a_file_is_refused(name: str, tmp_path: Path) -> None:
    """The model itself, or its tensor file, is refused without waiting for a writer."""
    path = _write(tmp_path / "m.onnx", _model(17), external=True)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    for read in (from_onnx, OnnxLoss.read):
        with pytest.raises(EdgepeftError, match="not a regular file"):
            read(path)


def _newer(op: str, opset: int, path: Path) -> Path:
    """A file with one operator of a newer operator set after a weight."""
    to = "<to = 6>" if op == "BitCast" else ""
    graph = f"m (float[2,4,6,6] x) => (float[a,b,c,d] y) <float[1] k = {{1.5}}> {{ w = Mul(x, k)\n y = {op}{to}(w) }}"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> {graph}'), path)
    return path


@pytest.mark.parametrize(("op", "opset"), [("Relu", 23), ("Gelu", 22), ("Softmax", 24), ("GlobalMaxPool", 22)])
def test_a_newer_file_is_read_where_it_has_an_older_form(op: str, opset: int, tmp_path: Path) -> None:
    """Operators to which later operator sets only added types stay the same."""
    model = from_onnx(_newer(op, opset, tmp_path / "m.onnx"), ["k"]).model
    assert model.graph.opset_imports[""] == OPSET
    assert [node.op_type for node in model.graph] == ["Mul", op]


def test_a_newer_operator_is_written_in_older_ones(tmp_path: Path) -> None:
    """Swish of opset 24 becomes the nodes that define it, and the file has been compared with the graph."""
    forward = from_onnx(_newer("Swish", 24, tmp_path / "m.onnx"), ["k"])
    made = [node.op_type for node in forward.model.graph if node.op_type not in ("Constant", "CastLike")]
    assert made == ["Mul", "Mul", "Sigmoid", "Mul"]
    assert forward.verified.examples


@pytest.mark.parametrize(("op", "opset"), [("BitCast", 26)])
def test_a_newer_operator_is_named(op: str, opset: int, tmp_path: Path) -> None:
    """The error names the file's operator set, the required one and the operator, with a hint."""
    with pytest.raises(ForwardError) as caught:
        from_onnx(_newer(op, opset, tmp_path / "m.onnx"), ["k"])
    assert caught.value.code == "opset-not-converted"
    assert f"opset {opset} and cannot be converted to {OPSET}" in caught.value.message
    assert caught.value.context == f"no older operators express {op}."
    assert f"opset {OPSET}" in str(caught.value.hint)


def test_a_batch_is_that_of_the_first_state(tmp_path: Path) -> None:
    """A file with a free batch whose recurrent states are of one example drops the batch by its Squeeze."""
    text = """<ir_version: 8, opset_import: ["": 9]> g (float[n, 2, 4] x, float[1, 1, 3] h) => (float[n] y) {
        t = Transpose<perm = [1, 0, 2]>(x)
        all, last = GRU<hidden_size = 3, linear_before_reset = 1>(t, w, r, , , h)
        m = MatMul(last, head)
        s = Squeeze(m)
        a = Slice<axes = [0], starts = [0], ends = [1]>(s)
        b = Slice<axes = [0], starts = [1], ends = [3]>(s)
        y = Concat<axis = 0>(b, a)
    }"""
    model, draw = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name, shape in {"w": (1, 9, 4), "r": (1, 9, 3), "head": (3, 3)}.items():
        array = draw.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "model.onnx")
    example = {"x": draw.normal(size=(1, 2, 4)).astype(np.float32), "h": np.ones((1, 1, 3), np.float32)}
    edgepeft.prepare(tmp_path / "model.onnx", example, loss="mse", method="lora", out=tmp_path / "bundle")
    with Trainer.open(tmp_path / "bundle") as trainer:
        labels = np.arange(3, dtype=np.float32)
        losses = [trainer.step({**example, "labels": labels}, lr=0.05) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1]])
def test_a_cut_mean_with_padding_is_that_of_torch(tmp_path: Path, pads: list[int]) -> None:
    """Releases of ONNX Runtime divide it differently, so the graph pads the image itself, on the oldest one too."""
    settings = f"kernel_shape = [3, 3], strides = [2, 2], pads = {pads}, ceil_mode = 1, count_include_pad = 1"
    text = f"""<ir_version: 8, opset_import: ["": 19]> g (float[n, 2, 6, 6] x) => (float[n, a, b, c] y) {{
        h = Conv<kernel_shape = [1, 1]>(x, w)
        y = AveragePool<{settings}>(h)
    }}"""
    model, draw = onnx.parser.parse_model(text), np.random.default_rng(0)
    weight = draw.normal(size=(4, 2, 1, 1)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "model.onnx")
    forward = from_onnx(tmp_path / "model.onnx", ["w"])
    x = draw.normal(size=(2, 2, 6, 6)).astype(np.float32)
    (found,) = session(ir.to_proto(forward.model)).run(None, {"x": x, "w": weight})
    mean = torch.nn.AvgPool2d(3, 2, padding=pads[0], ceil_mode=True)
    expected = mean(torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(weight)))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)
