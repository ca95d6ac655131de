"""Outputs of files: chosen ones come first, the file's own ones stay, and what is no tensor of numbers is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from sklearn.linear_model import LogisticRegression

import edgepeft
from edgepeft.preparation.prepare import doctor
from edgepeft_export.errors import ForwardError
from edgepeft_export.forward import from_onnx
from edgepeft_runtime import Trainer
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.notices import EdgepeftWarning


def _draw(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def _file(path: Path, outputs: str, body: str, domain: str = "ai.onnx.ml", functions: str = "") -> Path:
    texts = ", string[N, 1] words" if "(words)" in body else ""
    head = f'<ir_version: 9, opset_import: ["": 18, "{domain}": 1]> g (float[N, 8] x{texts}) => ({outputs})'
    model = parser.parse_model(f"{head} {{ h = MatMul(x, W)  t = Tanh(h)  {body} }} {functions}")
    arrays = {"W": _draw(8, 6), "V": _draw(6, 3)}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(model, path)
    return path


def _merged(folder: Path, x: Array) -> dict[str, Array]:
    edgepeft.merge(folder / "b", folder / "u.safetensors", to="onnx", out=folder / "merged.onnx")
    session = ort.InferenceSession(folder / "merged.onnx", providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, {"x": x}), strict=True))


def test_chosen_outputs_come_before_the_files_own(tmp_path: Path) -> None:
    """The loss reads the first; predictions have all, and a merged file has the file's own in its order."""
    body = "logits = MatMul(t, V)  probs = Softmax(logits)  best = ArgMax <axis = 1, keepdims = 0> (probs)"
    path = _file(tmp_path / "m.onnx", "float[N, 3] probs, int64[N] best", body)
    edgepeft.prepare(
        path, trainable=["W"], loss="cross_entropy", interface=edgepeft.Interface(outputs=["logits"]),
        out=tmp_path / "b",
    )  # fmt: skip
    x = _draw(5, 8)
    with Trainer.open(tmp_path / "b") as trainer:
        trainer.step({"x": x, "labels": np.array([0, 1, 2, 0, 1])})
        trainer.save_update(tmp_path / "u.safetensors")
        predicted = trainer.predict({"x": x})
    assert [*predicted] == ["logits", "probs", "best"]
    merged = _merged(tmp_path, x)
    assert [*merged] == ["probs", "best"]
    np.testing.assert_allclose(merged["probs"], predicted["probs"], atol=1e-5)


def test_outputs_that_devices_do_not_compute_are_left_out(tmp_path: Path) -> None:
    """A decoder of texts after the scores does not keep a file from training, once the scores are named."""
    body = "logits = MatMul(t, V)  words = ai.onnx.contrib.Decoder(logits)  more = ai.onnx.contrib.Pick(logits)"
    path = _file(tmp_path / "m.onnx", "string[N] words, float[N] more", body, "ai.onnx.contrib")
    forward = from_onnx(path, ["W"], outputs=["logits"])
    assert (forward.outputs, forward.source_outputs) == (("logits",), ())
    assert [note.split(":")[0] for note in forward.verified.notes] == [
        "the file's output 'words' has texts, which devices do not return",
        "devices cannot compute the file's output 'more' (Pick)",
    ]
    with pytest.raises(ForwardError, match=r"has an operator Pick of the domain 'ai.onnx.contrib'"):
        from_onnx(path, ["W"])


REFUSED = {
    "has an operator Erfc .*nor the CPU build": ("float[N, 6] y", "y = Erfc(t)"),
    "has whole numbers, and no loss": ("int64[N] y", "y = ArgMax <axis = 1, keepdims = 0> (t)"),
    "no output that is a tensor": ("string[N, 6] y", "y = Cast <to = 8> (t)"),
    "The input 'words' of .* is text": ("float[N, 6] y", "numbers = Cast <to = 1> (words)  y = Add(t, numbers)"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_file_is_refused_in_one_sentence(reason: str, tmp_path: Path) -> None:
    """By ``doctor`` and ``prepare`` alike, with a way out."""
    path = _file(tmp_path / "m.onnx", *REFUSED[reason])
    for call in (lambda: doctor(path, trainable=["W"]), lambda: edgepeft.prepare(path, trainable=["W"], out="b")):
        with pytest.raises(ForwardError, match=reason) as caught:
            call()
        assert caught.value.hint


def test_functions_may_have_another_opset(tmp_path: Path) -> None:
    """Some exporters write each function in the set that it was made for."""
    soft = '<domain: "own", opset_import: ["": 13]> soft (a) => (b) { m = Softmax(a) b = Sub(a, m) }'
    path = _file(tmp_path / "m.onnx", "float[N, 6] y", "y = own.soft(t)", "own", soft)
    assert len(from_onnx(path, ["W"]).verified.examples) == 2


def _classifier(path: Path, model: LogisticRegression, labels: str, dictionaries: bool) -> Path:
    """As skl2onnx writes it."""
    one_row = len(model.classes_) == 2
    weights, bias = model.coef_, model.intercept_
    if one_row:
        weights, bias = np.concatenate([-weights, weights]), np.concatenate([-bias, bias])
    names = [f"class {number}" for number in model.classes_] if labels == "strings" else [*map(int, model.classes_)]
    nodes = [
        helper.make_node(
            "LinearClassifier", ["x"], ["label", "raw"], domain="ai.onnx.ml", coefficients=weights.ravel().tolist(),
            intercepts=bias.tolist(), post_transform="LOGISTIC" if one_row else "SOFTMAX",
            **{f"classlabels_{labels}": names},
        ),
        helper.make_node("Normalizer", ["raw"], ["probabilities"], domain="ai.onnx.ml", norm="L1"),
    ]  # fmt: skip
    kind = TensorProto.INT64 if labels == "ints" else TensorProto.STRING
    outputs = [helper.make_tensor_value_info("label", kind, ["N"])]
    if dictionaries:
        key = "classlabels_int64s" if labels == "ints" else "classlabels_strings"
        nodes.append(helper.make_node("ZipMap", ["probabilities"], ["zipped"], domain="ai.onnx.ml", **{key: names}))
        floats = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
        of_dictionaries = helper.make_sequence_type_proto(helper.make_map_type_proto(kind, floats))
        outputs.append(helper.make_value_info("zipped", of_dictionaries))
    else:
        outputs.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", len(names)]))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])], outputs)
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=9), path)
    return path


@pytest.mark.parametrize(("labels", "dictionaries"), [("ints", True), ("ints", False), ("strings", True)])
@pytest.mark.parametrize("classes", [2, 3])
def test_linear_classifier_trains_from_its_probabilities(
    classes: int, labels: str, dictionaries: bool, tmp_path: Path
) -> None:
    """They are scikit-learn's before training, and the merged file's after it; dictionaries become a tensor."""
    x = _draw(40, 8)
    target = np.digitize(x[:, 0], [0.0, 0.8][: classes - 1])
    model = LogisticRegression().fit(x, target)
    path = _classifier(tmp_path / "m.onnx", model, labels, dictionaries)
    with pytest.warns(EdgepeftWarning, match="'probabilities' has their numbers" if dictionaries else "Softmax"):
        edgepeft.prepare(path, method="head", loss="cross_entropy", out=tmp_path / "b")
    with Trainer.open(tmp_path / "b") as trainer:
        before = trainer.predict({"x": x})
        np.testing.assert_allclose(before["probabilities"], model.predict_proba(x), atol=1e-5)
        losses = [trainer.step({"x": x, "labels": target}, lr=3e-2) for _ in range(15)]
        trainer.save_update(tmp_path / "u.safetensors")
        after = trainer.predict({"x": x})["probabilities"]
    assert losses[0] == pytest.approx(-np.log(model.predict_proba(x)[np.arange(40), target]).mean(), rel=1e-4)
    assert losses[-1] < losses[0]
    merged = _merged(tmp_path, x)
    np.testing.assert_allclose(merged["probabilities"], after, atol=1e-5)
    if labels == "ints":
        np.testing.assert_array_equal(merged["label"], after.argmax(1))


def test_scaled_regression_is_written_by_others(tmp_path: Path) -> None:
    """Reading compares it with ONNX Runtime's operators at two sizes; the coefficients are a matrix that trains."""
    nodes = [
        helper.make_node("Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[0.5, 1.0, 0.0, 2.0], scale=[2.0] * 4),
        helper.make_node("Normalizer", ["s"], ["n"], domain="ai.onnx.ml", norm="L2"),
        helper.make_node(
            "LinearRegressor", ["n"], ["y"], "fit", domain="ai.onnx.ml", targets=2, intercepts=[0.5, 0.1],
            coefficients=_draw(8).tolist(),
        ),
    ]  # fmt: skip
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("x", 4), ("y", 2)))
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=domains), tmp_path / "m.onnx")
    forward = from_onnx(tmp_path / "m.onnx", ["*coefficients"])
    assert {name: array.shape for name, array in forward.parameters.items()} == {"fit/coefficients": (2, 4)}
    assert len(forward.verified.examples) == 2


def test_trees_are_refused_with_the_reason(tmp_path: Path) -> None:
    """They have no tensor that a gradient could change."""
    branches = {"nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_values": [0.5, 0.0, 0.0]}
    numbers = {
        "nodes_treeids": [0] * 3, "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0] * 3,
        "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0], "target_treeids": [0, 0],
        "target_nodeids": [1, 2], "target_ids": [0, 0], "target_weights": [1.0, 2.0],
    }  # fmt: skip
    node = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], "trees", domain="ai.onnx.ml", **branches, **numbers)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("x", 4), ("y", 1))
    ]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ForwardError, match=r"TreeEnsembleRegressor \(node trees\) is a forest of decision trees"):
        doctor(tmp_path / "m.onnx", method="lora")
