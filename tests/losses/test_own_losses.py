"""A user's own loss, a torch function or an .onnx file, trains as in torch; wrong arguments are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import edgepeft
from edgepeft_export.errors import LossError, VerificationError
from edgepeft_export.forward import Forward, from_torch
from edgepeft_export.forward.torch_source.own_loss import from_function
from edgepeft_export.losses import Loss, OnnxLoss
from edgepeft_runtime import Trainer
from edgepeft_runtime.errors import EdgepeftError
from tests.support.linear_graphs import CLASSES, FEATURES, compiled, expected_of, leaves, linear, run, torch_logits


class Focal(nn.Module):
    """Lin et al., ICCV 2017, with a weight per class as a buffer."""

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("alpha", torch.linspace(0.5, 1.5, CLASSES))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = functional.log_softmax(logits, dim=-1).gather(1, labels[:, None]).squeeze(1)
        return (-self.alpha[labels] * (1 - log_p.exp()) ** self.gamma * log_p).mean()


def _class_batch(rows: int, kind: str = "rows") -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(rows)
    sizes = (rows,) if kind == "rows" else (rows, 4)
    return {
        "x": torch.randn(*sizes, FEATURES, generator=draw),
        "labels": torch.randint(3, CLASSES, sizes, generator=draw),
    }


def _torch_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, ignore_index=2, reduction="mean")


def _token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.nll_loss(functional.log_softmax(logits, -1).flatten(0, 1), labels.flatten())


def _smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    weight = torch.linspace(0.5, 2.0, CLASSES)
    return functional.cross_entropy(logits, labels, weight, ignore_index=3, label_smoothing=0.2)


def _soft(logits: Tensor, labels: Tensor) -> Tensor:
    probabilities = 0.7 * functional.one_hot(labels, CLASSES).float() + 0.3 / CLASSES
    return nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2.0, CLASSES), label_smoothing=0.1)(logits, probabilities)


def _focal_of_each(logits: Tensor, labels: Tensor) -> Tensor:
    each = functional.cross_entropy(logits, labels, reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * functional.cross_entropy(logits, labels, reduction="none")).mean()


def _tokens_first(logits: Tensor, labels: Tensor) -> Tensor:
    total = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="sum", label_smoothing=0.1)
    return total / labels.numel() + functional.mse_loss(logits, torch.ones_like(logits))


OWN = {
    "smoothed": (_smoothed, "rows"),
    "soft": (_soft, "rows"),
    "focal-of-each": (_focal_of_each, "rows"),
    "tokens-first": (_tokens_first, "tokens"),
    "module": (Focal(2.0), "rows"),
    "cross-entropy": (_torch_cross_entropy, "rows"),
    "huber": (lambda logits, labels: functional.smooth_l1_loss(logits[:, 0], labels.float(), beta=0.5), "rows"),
    "tokens": (_token_loss, "tokens"),
}


@pytest.mark.parametrize("name", OWN)
def test_torch_functions_and_modules_are_losses(name: str) -> None:
    """A focal loss, and torch's own functions, have torch's values and gradients at sizes other than the example's."""
    function, kind = OWN[name]
    forward = linear(kind)
    labels = torch.zeros(2 if kind == "rows" else (2, 2), dtype=torch.int64)
    step = compiled(forward, from_function(function, forward, {"labels": labels}))
    for rows in (1, 3, 8):
        batch = _class_batch(rows, kind)
        value, gradients = expected_of(forward, kind, function, batch)
        result = run(step, batch)
        assert result.loss == pytest.approx(value, rel=1e-5)
        np.testing.assert_allclose(result.gradients["w"], gradients["w"], rtol=1e-4, atol=1e-6)


def test_a_function_of_two_outputs_and_two_labels_is_a_loss() -> None:
    """Arguments are wired by name, in any order. One with a default keeps it."""

    def both(target: Tensor, squares: Tensor, logits: Tensor, importance: Tensor, power: float = 2.0) -> Tensor:
        return (importance[:, None] * (logits - target).abs() ** power + 0.1 * squares).mean()

    forward = linear(second=True)
    labels = {"target": torch.zeros(2, CLASSES), "importance": torch.zeros(2)}
    step = compiled(forward, from_function(both, forward, labels))
    assert [label.name for label in step.labels] == ["target", "importance"]
    batch = {"x": torch.randn(5, FEATURES), "target": torch.randn(5, CLASSES), "importance": torch.rand(5)}
    parameters = leaves(forward)
    logits = torch_logits(batch["x"], parameters)
    expected = both(batch["target"], logits**2, logits, batch["importance"])
    expected.backward()
    result = run(step, batch)
    assert result.loss == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(result.gradients["w"], parameters["w"].grad, rtol=1e-4, atol=1e-5)


def test_own_losses_are_weighted_by_rows() -> None:
    """Batches of 2 and 6 rows are weighted by rows: together they give the mean over 8."""
    forward = linear()
    step = compiled(forward, from_function(Focal(1.0), forward, {"labels": torch.zeros(2, dtype=torch.int64)}))
    whole = _class_batch(8)
    parts = [run(step, {key: tensor[a:b] for key, tensor in whole.items()}) for a, b in ((0, 2), (2, 8))]
    assert [part.weight for part in parts] == [2.0, 6.0]
    assert sum(part.sum for part in parts) / 8 == pytest.approx(run(step, whole).loss, rel=1e-5)


def test_a_loss_of_each_example_is_a_mean() -> None:
    """``reduction="none"`` is trained on the mean, and uneven batches add up."""
    loss = nn.CrossEntropyLoss(reduction="none")
    own = from_function(lambda logits, labels: loss(logits, labels), linear(), {"labels": torch.zeros(2).long()})
    batch = _class_batch(5)
    value, gradients = expected_of(linear(), "rows", functional.cross_entropy, batch)
    result = run(compiled(linear(), own), batch)
    assert (result.loss, result.weight) == (pytest.approx(value, rel=1e-5), 5.0)
    np.testing.assert_allclose(result.gradients["w"], gradients["w"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("output", "argument"), [("387", "_387"), ("Identity:0", "Identity_0")])
def test_outputs_whose_names_are_no_arguments_can_be_read(output: str, argument: str, tmp_path: Path) -> None:
    """Names of tensors in files, as arguments of a function: other characters are underscores."""
    proto = ir.to_proto(linear().model)
    for node in proto.graph.node:
        node.output[:] = [output if name == "logits" else name for name in node.output]
    proto.graph.output[0].name = output
    values = linear().parameters.items()
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in values)
    del proto.graph.input[1:]
    onnx.save(proto, tmp_path / "m.onnx")
    scope: dict[str, Callable[..., Tensor]] = {}
    exec(f"def loss({argument}, labels): return cross_entropy({argument}, labels)", vars(functional), scope)
    interface = edgepeft.Interface(example_labels={"labels": torch.zeros(2).long()})
    edgepeft.prepare(tmp_path / "m.onnx", trainable=["w"], loss=scope["loss"], interface=interface, out=tmp_path / "b")
    batch = _class_batch(4)
    value, _ = expected_of(linear(), "rows", functional.cross_entropy, batch)
    with Trainer.open(tmp_path / "b") as trainer:
        assert [spec.name for spec in trainer.bundle.manifest.outputs] == [output]
        assert trainer.step({name: x.numpy() for name, x in batch.items()}) == pytest.approx(value, rel=1e-5)


def test_an_own_loss_follows_the_names_of_dynamic_axes(tmp_path: Path) -> None:
    """Where the caller calls the batch ``rows``, the labels of a torch function have that many rows too."""
    edgepeft.prepare(
        nn.Linear(FEATURES, CLASSES),
        torch.zeros(2, FEATURES),
        loss=lambda output, labels: functional.cross_entropy(output, labels),
        interface=edgepeft.Interface(
            {"input": {0: "rows"}}, example_labels={"labels": torch.zeros(2, dtype=torch.int64)}
        ),
        out=tmp_path / "b",
    )
    with Trainer.open(tmp_path / "b") as trainer:
        assert trainer.bundle.manifest.labels[0].shape == ("rows",)
        assert trainer.step({"input": np.zeros((5, FEATURES), np.float32), "labels": np.arange(5)}) > 0


LOSS_TEXT = """
    <ir_version: 10, opset_import: ["": 20]>
    hinge (float[batch, 5] logits, float[batch, 5] sign) => (float mean) {
        one = Constant <value = float {1.0}> ()
        product = Mul(logits, sign)
        margin = Sub(one, product)
        cut = Relu(margin)
        mean = ReduceMean <keepdims = 0> (cut)
    }
"""


def _write(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_an_onnx_file_is_a_loss(tmp_path: Path) -> None:
    """A hinge loss in an .onnx file is spliced after the model, and the file's labels become the bundle's."""
    loss = OnnxLoss.read(_write(tmp_path / "hinge.onnx", LOSS_TEXT))
    forward = linear()
    step = compiled(forward, loss)
    assert [(label.name, label.shape) for label in step.labels] == [("sign", ("batch", 5))]
    batch = {"x": torch.randn(6, FEATURES), "sign": torch.randn(6, CLASSES).sign()}
    parameters = leaves(forward)
    expected = functional.relu(1 - torch_logits(batch["x"], parameters) * batch["sign"]).mean()
    expected.backward()
    result = run(step, batch)
    assert result.loss == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(result.gradients["b"], parameters["b"].grad, rtol=1e-4, atol=1e-6)


def test_one_loss_serves_several_models(tmp_path: Path) -> None:
    """A loss can be compiled twice: the same object gives the same step again."""
    loss = OnnxLoss.read(_write(tmp_path / "hinge.onnx", LOSS_TEXT))
    batch = {"x": torch.randn(2, FEATURES), "sign": torch.ones(2, CLASSES)}
    first, second = (run(compiled(linear(), loss), batch) for _ in range(2))
    assert first.loss == second.loss


# What does not fit


def _refused(loss: Loss, forward: Forward) -> LossError:
    with pytest.raises(LossError) as failure:
        compiled(forward, loss)
    assert failure.value.hint is not None
    return failure.value


def test_a_loss_that_reads_no_output_is_refused(tmp_path: Path) -> None:
    """Inputs named otherwise than the model's outputs would make a loss that trains nothing."""
    loss = OnnxLoss.read(_write(tmp_path / "l.onnx", LOSS_TEXT.replace("logits", "scores")))
    error = _refused(loss, linear())
    assert error.code == "loss-inputs"
    assert "scores" in str(error) and "logits" in str(error)


def test_a_loss_of_several_outputs_is_refused(tmp_path: Path) -> None:
    """A loss must be one scalar."""
    text = LOSS_TEXT.replace("(float mean)", "(float mean, float[batch, 5] cut)")
    assert _refused(OnnxLoss.read(_write(tmp_path / "l.onnx", text)), linear()).code == "loss-outputs"


def test_a_loss_per_row_is_refused(tmp_path: Path) -> None:
    """A loss without reduction, one number per row, is named as such instead of failing on the device."""
    text = LOSS_TEXT.replace("ReduceMean <keepdims = 0> (cut)", "Identity(cut)").replace(
        "float mean", "float[batch, 5] mean"
    )
    assert _refused(OnnxLoss.read(_write(tmp_path / "l.onnx", text)), linear()).code == "loss-outputs"


def test_a_torch_loss_per_element_is_refused() -> None:
    """A tensor with more than one number per example is refused before it is exported."""
    with pytest.raises(LossError) as failure:
        from_function(lambda logits, labels: (logits - labels) ** 2, linear(), {"labels": torch.zeros(2, CLASSES)})
    assert failure.value.code == "loss-outputs"
    assert "each example" in str(failure.value.hint)


def test_a_torch_loss_that_fails_shows_what_it_was_given() -> None:
    """Labels of the wrong dtype are an error that shows the shapes, and torch's own words."""
    with pytest.raises(LossError) as failure:
        from_function(
            lambda logits, labels: functional.cross_entropy(logits, labels), linear(), {"labels": torch.zeros(2)}
        )
    assert failure.value.code == "loss-inputs"
    assert "labels torch.float32 [2]" in str(failure.value)


def test_an_argument_without_a_value_is_refused() -> None:
    """A torch loss with an argument that is no output and has no example label names both sides."""
    with pytest.raises(LossError) as failure:
        from_function(lambda logits, target: logits.sum() + target.sum(), linear(), {})
    assert failure.value.code == "loss-inputs"
    assert "'target'" in str(failure.value) and "logits" in str(failure.value)


def test_a_file_that_is_no_loss_is_refused(tmp_path: Path) -> None:
    """Bytes that are no ONNX model, and a missing path, have errors of their own."""
    (tmp_path / "no.onnx").write_bytes(b"not a model")
    for path in (tmp_path / "no.onnx", tmp_path / "absent.onnx"):
        with pytest.raises(EdgepeftError) as failure:
            OnnxLoss.read(path)
        assert failure.value.code == "not-a-model"


def test_labels_fit_the_sizes_of_the_example() -> None:
    """Labels may be positions in the example's own sequence: the outputs they are tried on are the model's own."""

    class Spans(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.ends = nn.Embedding(20, 8), nn.Linear(8, 2)

        def forward(self, ids: Tensor) -> dict[str, Tensor]:
            scores = self.ends(self.words(ids))
            return {"start": scores[..., 0], "end": scores[..., 1]}

    def loss(start: Tensor, end: Tensor, first: Tensor, last: Tensor) -> Tensor:
        return functional.cross_entropy(start, first) + functional.cross_entropy(end, last)

    forward = from_torch(Spans(), {"ids": torch.randint(0, 20, (2, 12))})
    own = from_function(loss, forward, {"first": torch.tensor([0, 5]), "last": torch.tensor([1, 11])})
    assert [label.name for label in own.labels({"start": None, "end": None})] == ["first", "last"]  # type: ignore[dict-item]


def test_a_loss_that_cannot_be_exported_is_named() -> None:
    """A loss that torch.onnx cannot export is an error about the loss."""

    def ctc(logits: Tensor, labels: Tensor) -> Tensor:
        rows, steps = logits.shape[:2]
        log_p = functional.log_softmax(logits, -1).transpose(0, 1)
        return functional.ctc_loss(log_p, labels, torch.full((rows,), steps), torch.full((rows,), labels.shape[1]))

    with pytest.raises(LossError, match="loss") as caught:
        from_function(ctc, linear("tokens"), {"labels": torch.ones(2, 2, dtype=torch.int64)})
    assert caught.value.code == "loss-export"
    assert "'ctc'" in str(caught.value.hint)


def test_a_loss_that_is_exported_wrong_is_refused() -> None:
    """A loss is run as the model is: its value has to be torch's."""

    def spread(logits: Tensor, labels: Tensor) -> Tensor:
        indices = labels[:, None].expand(-1, logits.shape[1])
        return torch.zeros_like(logits).scatter_reduce(0, indices, logits, "mean", include_self=True).square().mean()

    with pytest.raises(VerificationError, match="exported loss") as caught:
        from_function(spread, linear("rows"), {"labels": torch.zeros(2, dtype=torch.int64)})
    assert "scatter_reduce" in str(caught.value.context)
