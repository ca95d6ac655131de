"""Files with loops: trained, merged, and run by devices, which refuse a Loop that may not end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import edgepeft
from edgepeft.merging import to_onnx
from edgepeft_export.forward import from_onnx
from edgepeft_export.forward.onnx_source.lora import GraphLora
from edgepeft_export.optimizers import SGD
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.notices import EdgepeftWarning

LOOP = """
    t = Transpose<perm = [1, 0, 2]>(x)
    shape = Shape(x)
    count = Gather(shape, one)
    first = Gather(t, zero)
    start = Mul(first, none)
    last, each = Loop(count, , start) <body = b (int64 i, bool go, float[n, 4] s) => (on, next, kept) {
      on = Identity(go)
      v = Gather(t, i)
      a = MatMul(v, w)
      c = MatMul(s, r)
      sum = Add(a, c)
      next = Tanh(sum)
      kept = Identity(next)
    }>
    y = MatMul(last, head)"""


def _file(folder: Path, body: str) -> Path:
    draw = np.random.default_rng(0)
    constants = "int64 zero = {0}, int64 one = {1}, float none = {0}"
    text = f"g (float[n, steps, 4] x) => (float[n, 3] y) <{constants}> {{ {body} }}"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> {text}')
    for name, shape in {"w": (4, 4), "r": (4, 4), "head": (4, 3)}.items():
        array = draw.normal(scale=0.5, size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("steps", [3, 80])
def test_a_loop_over_steps_trains_and_merges(tmp_path: Path, steps: int) -> None:
    """Weights inside a loop of as many iterations as the input has steps get pairs; the merged file keeps the loop."""
    draw = np.random.default_rng(1)
    x = draw.normal(size=(5, steps, 4)).astype(np.float32)
    path = _file(tmp_path, LOOP)
    edgepeft.prepare(path, {"x": x}, loss="cross_entropy", method="lora", out=tmp_path / "bundle")
    batch = {"x": x, "labels": draw.integers(0, 3, 5)}
    with Trainer.open(tmp_path / "bundle") as trainer:
        losses = [trainer.step(batch, lr=0.05) for _ in range(30)]
        trainer.step({"x": x[:2, :2], "labels": batch["labels"][:2]}, lr=0.0)
        after = trainer.predict({"x": x})
        trainer.save_update(tmp_path / "update.safetensors")
        trained = trainer.parameters()
    assert losses[-1] < 0.5 * losses[0]
    assert {name.split(".")[0] for name in trained if name.endswith("lora_B")} >= {"w", "r"}
    merged = edgepeft.merge(
        tmp_path / "bundle", tmp_path / "update.safetensors", to="onnx", out=tmp_path / "merged.onnx"
    )
    session = onnxruntime.InferenceSession(merged, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["y"], {"x": x})[0], after["y"], rtol=1e-4, atol=1e-5)


def test_a_loop_that_may_not_end_is_refused_alike(tmp_path: Path) -> None:
    """In one sentence that names it, by ``doctor`` and by ``prepare``."""
    body = LOOP.replace("Loop(count, , start)", "Loop(, yes, start)").replace(
        "on = Identity(go)", "on = Less(i, count)"
    )
    body = body.replace("first = ", "yes = Less(zero, count)\n first = ")
    path = _file(tmp_path, body)
    x = np.zeros((5, 8, 4), np.float32)
    found = []
    for call in (edgepeft.doctor, edgepeft.prepare):
        out = {"out": tmp_path / "bundle"} if call is edgepeft.prepare else {}
        with pytest.raises(EdgepeftError, match="devices refuse a loop that may not end") as caught:
            call(path, {"x": x}, loss="cross_entropy", method="lora", **out)
        found.append(caught.value.code)
    assert found[0] == found[1]


def test_weights_that_a_loop_passes_on_get_pairs(tmp_path: Path) -> None:
    """TensorFlow's converter makes weights states that the body returns as they are."""
    states = LOOP.replace("last, each = Loop(count, , start)", "last, wn, rn, each = Loop(count, , start, w, r)")
    states = states.replace(
        "float[n, 4] s) => (on, next, kept)",
        "float[n, 4] s, float[4, 4] wi, float[4, 4] ri) => (on, next, wo, ro, kept)",
    )
    states = states.replace("MatMul(v, w)", "MatMul(v, wi)").replace("MatMul(s, r)", "MatMul(s, ri)")
    states = states.replace("kept = Identity(next)", "wo = Identity(wi)  ro = Identity(ri)  kept = Identity(next)")
    path, example = _file(tmp_path, states), {"x": np.ones((2, 5, 4), np.float32)}
    forward = from_onnx(path, lora=GraphLora(rank=2, train_head=False), example=example)
    assert {name for name in forward.parameters if name.endswith("lora_A")} == {"w.lora_A", "r.lora_A"}


def test_a_loss_reads_the_first_output_of_floats(tmp_path: Path) -> None:
    """Classifiers of scikit-learn have the label first, and so does the merged file."""
    body = "scores = MatMul(x, w) label = ArgMax<axis = 1, keepdims = 0>(scores)"
    text = f"g (float[n, 4] x) => (int64[n] label, float[n, 3] scores) {{ {body} }}"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> {text}')
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "w"))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.warns(EdgepeftWarning, match="the loss reads 'scores'"):
        bundle = edgepeft.prepare(
            tmp_path / "m.onnx", trainable=["w"], loss="cross_entropy", out=tmp_path / "bundle"
        ).bundle
    opened = Bundle.open(bundle)
    assert [spec.name for spec in opened.manifest.outputs] == ["scores", "label"]
    made = to_onnx.inference_model(opened)
    assert [value.name for value in made.graph.outputs] == ["label", "scores"]


APPENDING = LOOP.replace("start = ", "none_yet = SequenceEmpty()\n start = ")
APPENDING = APPENDING.replace("last, each = Loop(count, , start)", "list, last = Loop(count, , none_yet, start)")
APPENDING = APPENDING.replace(
    "float[n, 4] s) => (on, next, kept)", "seq(float[n, 4]) l, float[n, 4] s) => (on, more, next)"
)
APPENDING = APPENDING.replace("kept = Identity(next)", "more = SequenceInsert(l, next)")

COUNTING = LOOP.replace("start = ", "yes = Less(zero, count)\n start = ")
COUNTING = COUNTING.replace("last, each = Loop(count, , start)", "number, last, each = Loop(, yes, zero, start)")
COUNTING = COUNTING.replace("float[n, 4] s) => (on, next", "int64 k, float[n, 4] s) => (on, k1, next")
COUNTING = COUNTING.replace("on = Identity(go)", "k1 = Add(k, one)  on = Less(k1, count)")

SEQUENCES = {
    "a list of steps, stacked": APPENDING.replace(
        "y = MatMul(last, head)",
        """all = ConcatFromSequence <axis = 1, new_axis = 1> (list)
    m = ReduceMean <keepdims = 0, axes = [1]> (all)
    y = MatMul(m, head)""",
    ),
    "a list of steps, joined": APPENDING.replace(
        "y = MatMul(last, head)",
        """all = ConcatFromSequence <axis = 1> (list)
    z = ReduceMax <axes = [1]> (all)
    m = Mul(z, last)
    y = MatMul(m, head)""",
    ),
    "an element of a list": APPENDING.replace("y = MatMul(last", "at = SequenceAt(list, one)\n    y = MatMul(at"),
    "while a number is below another": COUNTING,
    "slices of growing length": """
    t = MatMul(x, w)
    three = Constant <value = int64 {3}> ()
    yes = Equal(one, one)
    each = Loop(three, yes) <body = b (int64 i, bool go) => (on, kept) {
      on = Identity(go)
      axes = Constant <value = int64[1] {1}> ()
      begin = Constant <value = int64[1] {0}> ()
      k = Add(i, one)
      end = Unsqueeze(k, begin)
      part = Slice(t, begin, end, axes)
      squares = Mul(part, part)
      kept = ReduceMean <axes = [1], keepdims = 0> (squares)
    }>
    m = ReduceMean <axes = [0], keepdims = 0> (each)
    y = MatMul(m, head)""",
    "parts of a tensor": """
    t = MatMul(x, w)
    parts = SplitToSequence <axis = 2, keepdims = 0> (t)
    p = SequenceAt(parts, one)
    q = SequenceAt(parts, zero)
    three = SequenceConstruct(p, q, p)
    four = SequenceInsert(three, q, zero)
    whole = ConcatFromSequence <axis = 2, new_axis = 1> (four)
    number = SequenceLength(four)
    scaled = Cast <to = 1> (number)
    u = Mul(whole, scaled)
    v = MatMul(u, head)
    y = ReduceMean <axes = [1], keepdims = 0> (v)""",
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_sequences_and_counted_loops_train(kind: str, tmp_path: Path) -> None:
    """The graph equals the file at two sizes, and a small step lowers the loss by as much as its gradient says."""
    path, draw = _file(tmp_path, SEQUENCES[kind]), np.random.default_rng(1)
    x = draw.normal(size=(3, 5, 4)).astype(np.float32)
    sgd = SGD(momentum=0.0, weight_decay=0.0)
    edgepeft.prepare(path, {"x": x}, trainable=["w"], loss="mse", optimizer=sgd, out=tmp_path / "b")
    assert len(from_onnx(path, ["w"], example={"x": x}).verified.examples) == 2
    batch, rate = {"x": x, "labels": draw.normal(size=(3, 3)).astype(np.float32)}, 1e-3
    with Trainer.open(tmp_path / "b") as trainer:
        before = trainer.parameters()["w"].astype(np.float64)
        loss = trainer.step(batch, lr=rate)
        moved = trainer.parameters()["w"] - before
        fallen = loss - trainer.evaluate(batch).loss
    assert fallen == pytest.approx(float((moved**2).sum()) / rate, rel=0.05)
