"""An .onnx file is run before it is believed: its outputs, its shapes, its sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgepeft
from edgepeft_export.errors import ForwardError, VerificationError
from edgepeft_export.forward import from_onnx
from edgepeft_export.forward.graph import Forward
from edgepeft_export.forward.onnx_source.declared_shapes import settle_shapes
from edgepeft_export.forward.onnx_source.reference import FileReference, verified
from edgepeft_export.graph.shapes import dims_of
from edgepeft_export.optimizers import SGD
from edgepeft_export.verification import HALF
from edgepeft_export.verification.invent import Runs, run_twice
from edgepeft_runtime import Trainer
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.notices import EdgepeftWarning

SGD_1 = SGD(lr=1.0, momentum=0.0, weight_decay=0.0)


def _draw(*shape: int) -> Array:
    return np.random.default_rng(len(shape) + sum(shape)).normal(size=shape).astype(np.float32)


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, Array],
    inputs: dict[str, list[object]],
    outputs: dict[str, list[object]],
    opset: int = 17,
) -> Path:
    def values(shapes: dict[str, list[object]]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, TensorProto.BOOL if name == "flag" else TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
        ]

    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", values(inputs), values(outputs), tensors)
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=8), path)
    return path


def _classifier(path: Path, head: str = "Softmax") -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "W"], ["logits"]),
        helper.make_node(head, ["logits"], ["probs"]),
    ]
    return _save(path, nodes, {"A": _draw(8, 16), "W": _draw(16, 3)}, {"x": ["n", 8]}, {"probs": ["n", 3]})


def _file(path: Path, inputs: dict[str, Array]) -> Array:
    return np.asarray(ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)[0])


@pytest.mark.parametrize("head", ["Softmax", "LogSoftmax", "Sigmoid"])
def test_losses_over_scores_read_what_is_before_the_head(tmp_path: Path, head: str) -> None:
    """Cross-entropy of probabilities stays high; of the scores before them it falls, and a merged file has the head."""
    path = _classifier(tmp_path / "m.onnx", head)
    loss = "bce_with_logits" if head == "Sigmoid" else "cross_entropy"
    with pytest.warns(EdgepeftWarning, match=f"'probs' comes from a {head}"):
        edgepeft.prepare(path, method="lora", loss=loss, out=tmp_path / "b")
    x = _draw(32, 8)
    labels = (x[:, 0] > 0).astype(np.int64)
    batch = {"x": x, "labels": np.eye(3, dtype=np.float32)[labels] if head == "Sigmoid" else labels}
    with Trainer.open(tmp_path / "b") as trainer:
        assert [*trainer.predict({"x": x})] == ["logits", "probs"]
        np.testing.assert_allclose(trainer.predict({"x": x})["probs"], _file(path, {"x": x}), atol=1e-5)
        losses = [trainer.step(batch, lr=3e-2) for _ in range(60)]
        trainer.save_update(tmp_path / "u.safetensors")
        trained = trainer.predict({"x": x})["probs"]
    assert losses[-1] < 0.1
    edgepeft.merge(tmp_path / "b", tmp_path / "u.safetensors", to="onnx", out=tmp_path / "merged.onnx")
    np.testing.assert_allclose(_file(tmp_path / "merged.onnx", {"x": x}), trained, atol=1e-5)


def test_scores_are_found_before_a_softmax_of_a_matrix(tmp_path: Path) -> None:
    """It reads a matrix, so it stands between two reshapes: the loss of each position is that of the scores."""
    model = onnx.parser.parse_model(
        '<ir_version: 7, opset_import: ["": 11]> g (float[n, t, 4] x) => (float[n, t, 3] probs)'
        "<float[4, 3] W = {1, 2, 3, 4, 5, 6, 7, 8, 10, 1, 0, 2}>"
        "{ logits = MatMul(x, W) probs = Softmax <axis = 2> (logits) }"
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.warns(EdgepeftWarning, match="'probs' comes from a Softmax"):
        edgepeft.prepare(tmp_path / "m.onnx", trainable=["W"], loss="cross_entropy", out=tmp_path / "b")
    x, labels = _draw(2, 5, 4), np.array([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
    with Trainer.open(tmp_path / "b") as trainer:
        probs = trainer.predict({"x": x})["probs"]
        expected = -np.log(np.take_along_axis(probs, labels[..., None], axis=-1)).mean()
        assert trainer.evaluate({"x": x, "labels": labels}).loss == pytest.approx(expected, rel=1e-4)


def test_a_squeezed_batch_of_one_is_not_compared(tmp_path: Path) -> None:
    """A Squeeze without axes drops the axis of a batch of one. The bundle keeps it, as the file declares."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["h"]), helper.make_node("Squeeze", ["h"], ["y"])]
    path = _save(tmp_path / "m.onnx", nodes, {"W": _draw(4, 1)}, {"x": ["n", 4]}, {"y": ["n"]})
    edgepeft.prepare(path, {"x": _draw(2, 4)}, trainable=["W"], loss="mse", out=tmp_path / "b")
    with Trainer.open(tmp_path / "b") as trainer:
        assert [trainer.predict({"x": _draw(rows, 4)})["y"].shape for rows in (1, 3)] == [(1,), (3,)]


_WRITTEN_OUT = {
    "cross_entropy": """m = ReduceMax <axes = [1]> (logits) wide = Expand(m, two) c = Sub(logits, wide) e = Exp(c)
        s = ReduceSum(e, axis) d = Expand(s, two) q = Div(e, d) probs = Identity(q)""",
    "bce_with_logits": "n = Neg(logits) e = Exp(n) d = Add(e, one) probs = Div(one, d)",
}


@pytest.mark.parametrize("loss", _WRITTEN_OUT)
def test_scores_are_found_before_a_head_that_is_written_out(tmp_path: Path, loss: str) -> None:
    """Converters from JAX and TensorFlow write a Softmax as exponentials, and a Sigmoid as a quotient."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[2, 3] x) => (float[2, 3] probs)'
        "<float[3, 3] W = {1, 2, 3, 4, 5, 6, 7, 8, 10}, int64[2] two = {2, 3}, int64[1] axis = {1}, float one = {1}>"
        f"{{ logits = MatMul(x, W) {_WRITTEN_OUT[loss]} }}"
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.warns(EdgepeftWarning, match="written out"):
        edgepeft.prepare(tmp_path / "m.onnx", trainable=["W"], loss=loss, out=tmp_path / "b")
    with Trainer.open(tmp_path / "b") as trainer:
        found = trainer.predict({"x": _draw(2, 3)})
    scores, probs = found["logits" if loss == "bce_with_logits" else "c"], found["probs"]
    expected = (
        1 / (1 + np.exp(-scores)) if loss == "bce_with_logits" else np.exp(scores) / np.exp(scores).sum(1)[:, None]
    )
    np.testing.assert_allclose(probs, expected, rtol=1e-5)


def test_axes_without_a_word_for_a_name_are_free(tmp_path: Path) -> None:
    """Paddle2ONNX writes ``?`` for two axes that differ."""
    nodes = [helper.make_node("GlobalMaxPool", ["x"], ["p"]), helper.make_node("Conv", ["p", "W"], ["y"])]
    shapes = {"x": [-1, 3, "?", "?"]}
    path = _save(tmp_path / "m.onnx", nodes, {"W": _draw(2, 3, 1, 1)}, shapes, {"y": [0, 2, 1, 1]})
    edgepeft.prepare(path, trainable=["W"], loss="mse", out=tmp_path / "b")
    with Trainer.open(tmp_path / "b") as trainer:
        assert trainer.predict({"x": _draw(5, 3, 4, 7)})["y"].shape == (5, 2, 1, 1)


def test_outputs_of_a_file_are_any_of_its_tensors(tmp_path: Path) -> None:
    """Outputs are chosen by name, also inner ones, and the loss reads the named one."""
    path = _classifier(tmp_path / "m.onnx")
    assert from_onnx(path, ["W"], outputs=["t", "probs"]).outputs == ("t", "probs")
    edgepeft.prepare(path, trainable=["W"], interface=edgepeft.Interface(outputs=["probs"]), out=tmp_path / "b")
    with Trainer.open(tmp_path / "b") as trainer:
        assert [*trainer.predict({"x": _draw(2, 8)})] == ["probs"]


def test_an_output_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The error lists the names of the file."""
    interface = edgepeft.Interface(outputs=["nonsense"])
    with pytest.raises(ForwardError, match="no tensor named 'nonsense'") as caught:
        edgepeft.prepare(_classifier(tmp_path / "m.onnx"), method="lora", interface=interface, out=tmp_path / "b")
    assert "logits, t, h" in str(caught.value.context)


def test_matmuls_of_one_weight_share_an_adapter(tmp_path: Path) -> None:
    """Both read one pair, as a shared torch layer does, and both are merged."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "W"], ["c"]),
        helper.make_node("MatMul", ["c", "H"], ["out"]),
    ]
    path = _save(tmp_path / "m.onnx", nodes, {"W": _draw(4, 4), "H": _draw(4, 2)}, {"x": ["n", 4]}, {"out": ["n", 2]})
    edgepeft.prepare(path, method="lora", loss="mse", out=tmp_path / "b")
    x = _draw(6, 4)
    with Trainer.open(tmp_path / "b") as trainer:
        losses = [trainer.step({"x": x, "labels": np.ones((6, 2), np.float32)}, lr=3e-2) for _ in range(20)]
        trainer.save_update(tmp_path / "u.safetensors")
        trained = trainer.predict({"x": x})["out"]
        assert [name for name in trainer.parameters() if "lora" in name] == ["W.lora_A", "W.lora_B"]
    assert losses[-1] < losses[0]
    edgepeft.merge(tmp_path / "b", tmp_path / "u.safetensors", to="onnx", out=tmp_path / "merged.onnx")
    np.testing.assert_allclose(_file(tmp_path / "merged.onnx", {"x": x}), trained, atol=1e-5)


@pytest.mark.parametrize("free", [-1, None])
def test_axes_without_a_name_are_free(tmp_path: Path, free: int | None) -> None:
    """An axis of -1, as converters write it, is one of any size."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["out"])]
    path = _save(tmp_path / "m.onnx", nodes, {"W": _draw(4, 2)}, {"x": [free, free, 4]}, {"out": [free, free, 2]})
    edgepeft.prepare(path, trainable=["W"], loss="mse", out=tmp_path / "b")
    with Trainer.open(tmp_path / "b") as trainer:
        for sizes in ((1, 3), (5, 2)):
            trainer.step({"x": _draw(*sizes, 4), "labels": _draw(*sizes, 2)})


def test_squeeze_without_axes_keeps_free_ones(tmp_path: Path) -> None:
    """Only axes that always have size 1 are squeezed, so the rank is known and a gradient crosses it."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["y"]),
        helper.make_node("Squeeze", ["y"], ["s"]),
        helper.make_node("Sigmoid", ["s"], ["p"]),
        helper.make_node("Mul", ["p", "four"], ["out"]),
    ]
    weights = {"W": _draw(4, 1), "four": np.array(4, np.float32)}
    path = _save(tmp_path / "m.onnx", nodes, weights, {"x": ["n", 4]}, {"out": ["n"]})
    edgepeft.prepare(path, trainable=["W"], loss="mse", optimizer=SGD_1, out=tmp_path / "b")
    x, labels, w = _draw(5, 4), _draw(5), _draw(4, 1)
    with Trainer.open(tmp_path / "b") as trainer:
        trainer.step({"x": x, "labels": labels})
        moved = w - trainer.parameters()["W"]
    p = 1 / (1 + np.exp(-(x @ w)[:, 0]))
    right = x.T @ (2 / 5 * (4 * p - labels) * 4 * p * (1 - p))
    np.testing.assert_allclose(moved[:, 0], right, rtol=1e-4, atol=1e-6)


def test_shapes_that_cannot_be_inferred_are_read_off_a_run(tmp_path: Path) -> None:
    """After an operator without ONNX shape inference, rank, sizes and names come from the run."""
    nodes = [
        helper.make_node("Imputer", ["x"], ["s"], domain="ai.onnx.ml", imputed_value_floats=[0.0] * 4),
        helper.make_node("MatMul", ["s", "W"], ["y"]),
        helper.make_node("Relu", ["y"], ["out"]),
    ]
    path = _save(tmp_path / "m.onnx", nodes, {"W": _draw(4, 3)}, {"x": ["n", 4]}, {"out": ["n", 3]})
    forward = from_onnx(path, ["W"])
    assert [dims_of(value) for node in forward.model.graph for value in node.outputs] == [["n", 4], ["n", 3], ["n", 3]]


def test_number_of_classes_is_read_off_runs(tmp_path: Path) -> None:
    """Recognizers of texts shape their scores back by sizes that are computed; the last is the same in both runs."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[steps, n, 4] x) => (float[a, b, c] y) {'
        "s = Shape<start = 0, end = 2>(x)  flat = Reshape(x, rows)  z = MatMul(flat, W)"
        "rest = Constant<value_ints = [-1]>()  "
        "t = Concat<axis = 0>(s, rest)  y = Reshape(z, t) }"
    )
    for name, array in {"W": _draw(4, 5), "rows": np.array([-1, 4])}.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "m.onnx")
    forward = from_onnx(tmp_path / "m.onnx", ["W"])
    assert dims_of(forward.model.graph.outputs[0]) == ["steps", "n", 5]


def test_declared_names_do_not_join_inferred_ones(tmp_path: Path) -> None:
    """Names that an earlier inference left in a file are other axes' names in the next: two axes must not share one."""
    nodes = [
        helper.make_node("Slice", ["W", "start", "end", "axis"], ["cut"]),
        helper.make_node("Reshape", ["x", "sizes"], ["folded"]),
        helper.make_node("ReduceSum", ["cut"], ["a"], keepdims=0),
        helper.make_node("ReduceSum", ["folded"], ["b"], keepdims=0),
        helper.make_node("Mul", ["a", "b"], ["y"]),
    ]
    weights = {"W": _draw(6, 3), **{name: np.array([0]) for name in ("start", "axis")}, "sizes": np.array([-1, 4])}
    path = _save(tmp_path / "m.onnx", nodes, weights, {"x": ["n", 8]}, {"y": []})
    proto = onnx.load(path)
    proto.graph.input.append(helper.make_tensor_value_info("end", TensorProto.INT64, [1]))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([5]), "end"))
    model = ir.from_proto(proto)
    for name in ("end", "start", "sizes"):  # only the run knows them
        model.graph.initializers[name].const_value = None
        model.graph.inputs.append(model.graph.initializers.pop(name))
    model.graph.inputs[-1].shape = ir.Shape(["rank"])  # so nothing is known of the shape that it folds to
    values = {value.name: value for node in model.graph for value in node.outputs}
    values["folded"].shape = ir.Shape(["unk__0", "unk__1"])
    settle_shapes(model, [])
    assert set(dims_of(values["cut"])) & {"unk__0", "unk__1"}  # the names of this inference
    assert not set(dims_of(values["folded"])) & set(dims_of(values["cut"]))


def test_casts_to_half_precision_inside_a_file_round(tmp_path: Path) -> None:
    """A float32 file that computes in float16 in between is compared as one in half precision."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"]),
        helper.make_node("Cast", ["h"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["y"], to=TensorProto.FLOAT),
    ]
    path = _save(tmp_path / "m.onnx", nodes, {"W": _draw(64, 64)}, {"x": ["n", 64]}, {"y": ["n", 64]})
    with pytest.warns(EdgepeftWarning, match="float16"):
        forward = from_onnx(path, ["W"])
    assert forward.verified.tolerance == HALF


def test_a_wrong_declared_shape_is_not_believed(tmp_path: Path) -> None:
    """The file declares 7 classes, the run has 3: the run is correct."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"]), helper.make_node("Relu", ["y"], ["out"])]
    path = _save(tmp_path / "m.onnx", nodes, {"W": _draw(4, 3)}, {"x": ["n", 4]}, {"out": ["n", 7]})
    assert dims_of(from_onnx(path, ["W"]).model.graph.outputs[0]) == ["n", 3]


def test_a_branch_may_pass_an_outer_value_through(tmp_path: Path) -> None:
    """A gradient crosses the branch that runs: a step is that of the matrix products written out."""

    def branch(name: str, value: str) -> onnx.GraphProto:
        node = helper.make_node("Identity", [value], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2])])

    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["y"]),
        helper.make_node("MatMul", ["x", "C"], ["c"]),
        helper.make_node("If", ["flag"], ["z"], then_branch=branch("z1", "c"), else_branch=branch("z2", "y")),
        helper.make_node("Add", ["y", "z"], ["m"]),
        helper.make_node("MatMul", ["m", "H"], ["out"]),
    ]
    weights = {"W": _draw(3, 2), "C": _draw(3, 2) * 2, "H": _draw(2, 2)}
    path = _save(tmp_path / "m.onnx", nodes, weights, {"x": ["n", 3], "flag": []}, {"out": ["n", 2]})
    assert edgepeft.doctor(path, trainable=["W"], loss="mse").missing_rules == ()
    plain = SGD(lr=1.0, momentum=0.0, weight_decay=0.0)
    edgepeft.prepare(path, trainable=["W"], loss="mse", optimizer=plain, out=tmp_path / "b")
    for flag, factor in ((True, 1.0), (False, 2.0)):
        with Trainer.open(tmp_path / "b") as trainer:
            inputs = {"x": _draw(4, 3), "flag": np.array(flag)}
            made = trainer.predict(inputs)["out"]
            np.testing.assert_allclose(made, _file(path, inputs), atol=1e-5)
            trainer.step({**inputs, "labels": np.zeros((4, 2), np.float32)})
            gradient = inputs["x"].T @ (2 * made / made.size) @ weights["H"].T * factor
            np.testing.assert_allclose(weights["W"] - trainer.parameters()["W"], gradient, rtol=1e-4, atol=1e-5)


def test_a_random_node_is_refused(tmp_path: Path) -> None:
    """The node that draws is named."""
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"], name="noisy"),
        helper.make_node("Add", ["x", "noise"], ["n"]),
        helper.make_node("MatMul", ["n", "W"], ["out"]),
    ]
    path = _save(tmp_path / "m.onnx", nodes, {"W": _draw(4, 3)}, {"x": ["n", 4]}, {"out": ["n", 3]})
    with pytest.raises(VerificationError, match="random") as caught:
        from_onnx(path, ["W"])
    assert "RandomNormalLike (node noisy)" in str(caught.value.context)


def test_a_graph_that_differs_names_the_first_tensor(tmp_path: Path) -> None:
    """Of two graphs that compute differently, the tensor and the operator where they part are named."""
    forward = from_onnx(_classifier(tmp_path / "m.onnx"), ["W"])
    other = _classifier(tmp_path / "other.onnx")
    model = onnx.load(other)
    model.graph.node[1].op_type = "Softsign"
    onnx.save(model, other)
    read = onnx_read(other)
    with pytest.raises(VerificationError, match="'probs'") as caught:
        verified(Forward(forward.model, forward.inputs, forward.parameters), read)
    assert "'t', of op Softsign" in str(caught.value.context)


def onnx_read(path: Path) -> FileReference:
    """A file as a reference."""
    import onnx_ir as ir

    model = ir.load(path)
    return FileReference(model, run_twice(model, None))


def test_a_file_that_runs_on_no_invented_input_takes_an_example(tmp_path: Path) -> None:
    """Without one it is prepared, with a warning that it could not be compared."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["rows"]),  # the free axis has to be a multiple of 11
        helper.make_node("MatMul", ["rows", "W"], ["out"]),
    ]
    weights = {"shape": np.array([-1, 11], np.int64), "W": _draw(11, 3)}
    path = _save(tmp_path / "m.onnx", nodes, weights, {"x": [1, "length"]}, {"out": ["rows", 3]})
    assert "could not be compared" in from_onnx(path, ["W"]).verified.notes[0]
    forward = from_onnx(path, ["W"], example={"x": _draw(1, 22)})
    assert [example.inputs["x"].shape for example in forward.verified.examples] == [(1, 22), (1, 44)]
    assert not Runs().pairs
