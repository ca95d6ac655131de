"""Losses have torch's values and gradients, add up over uneven batches, and refuse wrong inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import edgepeft
from edgepeft_export.errors import LossError
from edgepeft_export.forward import Forward
from edgepeft_export.losses import (
    L1,
    LOSSES,
    MSE,
    BCEWithLogits,
    BinaryFocal,
    CausalLM,
    CrossEntropy,
    Dice,
    Focal,
    Huber,
    KLDivergence,
    Loss,
    SmoothL1,
    SoftCrossEntropy,
    by_name,
)
from edgepeft_runtime import Trainer
from edgepeft_runtime.errors import BatchError, DataError, SettingError
from tests.support.linear_graphs import CLASSES, FEATURES, compiled, expected_of, linear, run
from tests.support.networks import tiny_gpt2

WEIGHTS = (0.5, 2.0, 1.0, 0.0, 3.0)

Oracle = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A loss, torch's function of logits and labels, and the kind of labels."""

    loss: Loss
    oracle: Oracle
    labels: str
    kind: str = "rows"


def _entropy(**settings: object) -> Oracle:
    def oracle(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, **settings)

    return oracle


def _tokens(oracle: Oracle) -> Oracle:
    return lambda logits, labels: oracle(logits.flatten(0, 1), labels.flatten())


def _shifted(oracle: Oracle) -> Oracle:
    return lambda logits, labels: oracle(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def _last_axis(oracle: Oracle) -> Oracle:
    return lambda logits, labels: oracle(logits.flatten(0, 1), labels.flatten(0, 1))


def _focal(gamma: float, weight: Tensor | None = None, ignore_index: int = -100) -> Oracle:
    def oracle(logits: Tensor, labels: Tensor) -> Tensor:
        entropy = functional.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
        weighted = functional.cross_entropy(logits, labels, weight, ignore_index=ignore_index, reduction="none")
        return ((1 - torch.exp(-entropy)) ** gamma * weighted)[labels != ignore_index].mean()

    return oracle


def _binary_focal(gamma: float, alpha: float | None = None) -> Oracle:
    def oracle(logits: Tensor, labels: Tensor) -> Tensor:
        entropy = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        p = logits.sigmoid()
        values = (1 - (p * labels + (1 - p) * (1 - labels))) ** gamma * entropy
        return (values if alpha is None else values * (alpha * labels + (1 - alpha) * (1 - labels))).mean()

    return oracle


def _divergence(temperature: float) -> Oracle:
    def oracle(logits: Tensor, labels: Tensor) -> Tensor:
        log_p = (logits / temperature).log_softmax(1)
        return temperature**2 * functional.kl_div(log_p, labels, reduction="none").sum(1).mean()

    return oracle


def _overlap(p: Tensor, y: Tensor, smooth: float) -> Tensor:
    p, y = p.flatten(2), y.flatten(2)
    return (1 - (2 * (p * y).sum(2) + smooth) / (p.sum(2) + y.sum(2) + smooth)).mean()


def _dice(smooth: float) -> Oracle:
    return lambda logits, labels: _overlap(logits.sigmoid(), labels, smooth)


def _dice_of_classes(smooth: float) -> Oracle:
    def oracle(logits: Tensor, labels: Tensor) -> Tensor:
        counted = (labels != -100)[:, None]
        y = functional.one_hot(labels.clamp(min=0), CLASSES).movedim(-1, 1)
        return _overlap(logits.softmax(1) * counted, y * counted, smooth)

    return oracle


CLASS_WEIGHT = torch.tensor(WEIGHTS)
EVERYTHING = {"label_smoothing": 0.2, "weight": CLASS_WEIGHT, "ignore_index": 1}

CASES = {
    "cross-entropy": Case(CrossEntropy(), _entropy(), "classes"),
    "smoothed": Case(CrossEntropy(label_smoothing=0.3), _entropy(label_smoothing=0.3), "classes"),
    "class-weights": Case(CrossEntropy(class_weights=WEIGHTS), _entropy(weight=CLASS_WEIGHT), "classes"),
    "ignore-index-0": Case(CrossEntropy(ignore_index=0), _entropy(ignore_index=0), "all classes"),
    "all-settings": Case(CrossEntropy(0.2, WEIGHTS, 1), _entropy(**EVERYTHING), "all classes"),
    "tokens": Case(CrossEntropy(), _tokens(_entropy()), "classes", "tokens"),
    "tokens-all-settings": Case(
        CrossEntropy(0.2, WEIGHTS, 1), _tokens(_entropy(**EVERYTHING)), "all classes", "tokens"
    ),
    "pixels": Case(CrossEntropy(class_axis=1), _entropy(), "classes", "images"),
    "pixels-all-settings": Case(CrossEntropy(0.2, WEIGHTS, 1, 1), _entropy(**EVERYTHING), "all classes", "images"),
    "causal-lm": Case(CausalLM(), _shifted(_entropy()), "classes", "tokens"),
    "causal-lm-smoothed": Case(
        CausalLM(label_smoothing=0.1), _shifted(_entropy(label_smoothing=0.1)), "classes", "tokens"
    ),
    "mse": Case(MSE(), functional.mse_loss, "numbers"),
    "mse-pixels": Case(MSE(), functional.mse_loss, "numbers", "images"),
    "l1": Case(L1(), functional.l1_loss, "numbers"),
    "bce": Case(BCEWithLogits(), functional.binary_cross_entropy_with_logits, "shares"),
    "huber": Case(Huber(0.5), lambda x, y: functional.huber_loss(x, y, delta=0.5), "numbers", "tokens"),
    "smooth-l1": Case(SmoothL1(2.0), lambda x, y: functional.smooth_l1_loss(x, y, beta=2.0), "numbers"),
    "focal": Case(Focal(), _focal(2.0), "classes"),
    "focal-weights": Case(Focal(0.5, WEIGHTS, 1), _focal(0.5, CLASS_WEIGHT, 1), "all classes"),
    "focal-0": Case(Focal(0.0), _entropy(), "classes"),
    "focal-tokens": Case(Focal(1.5), _tokens(_focal(1.5)), "classes", "tokens"),
    "focal-pixels": Case(Focal(2.0, WEIGHTS, class_axis=1), _focal(2.0, CLASS_WEIGHT), "classes", "images"),
    "binary-focal": Case(BinaryFocal(), _binary_focal(2.0), "shares"),
    "binary-focal-alpha": Case(BinaryFocal(0.5, 0.25), _binary_focal(0.5, 0.25), "shares", "images"),
    "soft": Case(SoftCrossEntropy(), _entropy(), "distributions"),
    "soft-all-settings": Case(
        SoftCrossEntropy(0.2, WEIGHTS), _entropy(label_smoothing=0.2, weight=CLASS_WEIGHT), "distributions"
    ),
    "soft-tokens": Case(SoftCrossEntropy(), _last_axis(_entropy()), "distributions", "tokens"),
    "soft-pixels": Case(
        SoftCrossEntropy(0.1, WEIGHTS, 1),
        _entropy(label_smoothing=0.1, weight=CLASS_WEIGHT),
        "distributions",
        "images",
    ),
    "kl": Case(KLDivergence(), _divergence(1.0), "distributions"),
    "kl-temperature": Case(KLDivergence(3.0), _last_axis(_divergence(3.0)), "distributions", "tokens"),
    "kl-of-classes": Case(KLDivergence(2.0, 1), _divergence(2.0), "one class", "images"),
    "dice": Case(Dice(), _dice(1.0), "shares", "images"),
    "dice-exclusive": Case(Dice(1e-3, exclusive=True), _dice_of_classes(1e-3), "classes", "images"),
    "bce-pos-weight": Case(
        BCEWithLogits(pos_weight=4.0),
        lambda x, y: functional.binary_cross_entropy_with_logits(x, y, pos_weight=torch.tensor(4.0)),
        "shares",
        "tokens",
    ),
    "bce-pos-weights": Case(
        BCEWithLogits((0.5, 1.0, 2.0, 3.0, 9.0)),
        lambda x, y: functional.binary_cross_entropy_with_logits(x, y, pos_weight=torch.tensor([0.5, 1, 2, 3, 9])),
        "shares",
    ),
}


def _batch(case: Case, rows: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Inputs and labels. Some class labels are ignored, among them the first."""
    draw = torch.Generator().manual_seed(seed)
    sizes = {"rows": (rows,), "tokens": (rows, 6), "images": (rows, 3, 2)}[case.kind]
    shape = (rows, FEATURES, 3, 2) if case.kind == "images" else (*sizes, FEATURES)
    outputs = (rows, CLASSES, 3, 2) if case.kind == "images" else (*sizes, CLASSES)
    if case.labels in ("classes", "all classes"):
        labels = torch.randint(0, CLASSES, sizes, generator=draw)
        if case.labels == "classes":
            labels.view(-1)[:: labels.numel() // 2] = -100
    elif case.labels in ("distributions", "one class"):
        axis = 1 if case.kind == "images" else -1
        labels = torch.rand(outputs, generator=draw).mul(3).softmax(axis)
        if case.labels == "one class":
            labels = (labels == labels.amax(axis, keepdim=True)).float()
    else:
        labels = torch.rand(outputs, generator=draw) * (1 if case.labels == "shares" else 6) - (
            0 if case.labels == "shares" else 3
        )
    return {"x": 2 * torch.randn(shape, generator=draw), "labels": labels}


def _assert_same(loss: Loss, kind: str, oracle: Oracle, batch: Mapping[str, Tensor]) -> None:
    forward = linear(kind)
    value, gradients = expected_of(forward, kind, oracle, batch)
    result = run(compiled(forward, loss), batch)
    assert result.loss == pytest.approx(value, rel=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(result.gradients[name], gradient, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_torch(name: str) -> None:
    """With labels that do not count among them, loss and gradients of every parameter equal torch's."""
    case = CASES[name]
    _assert_same(case.loss, case.kind, case.oracle, _batch(case))


@pytest.mark.parametrize("name", CASES)
def test_losses_of_uneven_batches_add_up_to_that_of_one(name: str) -> None:
    """The summed terms of batches of 1, 4 and 2 rows are the loss of the 7 rows together."""
    case = CASES[name]
    whole = _batch(case, rows=7)
    step = compiled(linear(case.kind), case.loss)
    parts = [run(step, {key: tensor[a:b] for key, tensor in whole.items()}) for a, b in ((0, 1), (1, 5), (5, 7))]
    together = run(step, whole)
    assert sum(part.sum for part in parts) == pytest.approx(together.sum, rel=1e-5)
    assert sum(part.weight for part in parts) == pytest.approx(together.weight, rel=1e-5)
    added = sum(part.gradients["w"] * (part.weight or 1.0) for part in parts)
    np.testing.assert_allclose(added, together.gradients["w"] * together.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_weight_counts_an_example_as_often(name: str) -> None:
    """Weights of 2, 0, 1 and 3 are the loss and gradients of a batch that repeats its examples so often."""
    case, counts = CASES[name], torch.tensor([2, 0, 1, 3])
    batch = _batch(case)
    repeated = run(
        compiled(linear(case.kind), case.loss), {key: x.repeat_interleave(counts, 0) for key, x in batch.items()}
    )
    weighted = replace(case.loss, example_weights="weights")
    result = run(compiled(linear(case.kind), weighted), {**batch, "weights": counts.float()})
    assert result.sum == pytest.approx(repeated.sum, rel=1e-5)
    assert result.weight == pytest.approx(repeated.weight, rel=1e-5)
    np.testing.assert_allclose(result.gradients["w"], repeated.gradients["w"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["cross-entropy", "bce", "bce-pos-weight", "mse", "huber", "focal", "binary-focal", "soft", "kl", "dice"]
)
def test_large_scores_do_not_overflow(name: str) -> None:
    """Logits of some thousands have torch's finite loss and gradients."""
    case = CASES[name]
    batch = _batch(case)
    batch["x"] *= 2000
    _assert_same(case.loss, case.kind, case.oracle, batch)


@pytest.mark.parametrize("name", ["cross-entropy", "smoothed", "class-weights", "causal-lm", "pixels", "focal"])
def test_a_batch_of_ignored_labels_weighs_nothing(name: str) -> None:
    """Both terms and all gradients are zero, not the NaN of a division."""
    case = CASES[name]
    batch = _batch(case)
    batch["labels"].fill_(-100)
    result = run(compiled(linear(case.kind), case.loss), batch)
    assert (result.sum, result.weight) == (0.0, 0.0)
    assert all(not gradient.any() for gradient in result.gradients.values())


def test_a_class_of_weight_zero_weighs_nothing() -> None:
    """A batch with only a class of weight 0 has loss_weight 0, like a batch of ignored labels."""
    batch = _batch(CASES["class-weights"])
    batch["labels"].fill_(WEIGHTS.index(0.0))
    result = run(compiled(linear(), CrossEntropy(class_weights=WEIGHTS)), batch)
    assert (result.sum, result.weight) == (0.0, 0.0)


def test_causal_lm_of_one_token_predicts_nothing() -> None:
    """A sequence of length 1 has no next token: the loss weighs nothing instead of failing."""
    batch = {"x": torch.randn(2, 1, FEATURES), "labels": torch.zeros(2, 1, dtype=torch.int64)}
    result = run(compiled(linear("tokens"), CausalLM()), batch)
    assert (result.sum, result.weight) == (0.0, 0.0)


def test_causal_lm_is_the_loss_transformers_computes(tmp_path: Path) -> None:
    """Labels go in unshifted, with -100 on padding at either side, and the loss is that of ``model(..., labels=)``."""
    model = tiny_gpt2().eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("ln_f" in name)
    ids = torch.randint(3, 100, (3, 7), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[0, 5:], mask[1, :2] = 0, 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[1, 2] = -100  # the token after padding has no context
    example = {"input_ids": ids[:, :4], "attention_mask": mask[:, :4]}
    edgepeft.prepare(model, example, loss="causal_lm", out=tmp_path / "b")
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, labels=labels).loss.item()
    batch = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "labels": labels.numpy()}
    with Trainer.open(tmp_path / "b") as trainer:
        assert trainer.evaluate([batch]).loss == pytest.approx(expected, rel=1e-5)
        assert trainer.step(batch) == pytest.approx(expected, rel=1e-5)


def test_a_device_refuses_a_step_in_which_no_label_counts(tmp_path: Path) -> None:
    """Training and evaluation on ignored labels alone are errors, and leave the parameters as they were."""
    edgepeft.prepare(nn.Linear(FEATURES, CLASSES), torch.zeros(2, FEATURES), out=tmp_path / "b")
    batch = {"input": np.ones((2, FEATURES), np.float32), "labels": np.full(2, -100)}
    with Trainer.open(tmp_path / "b") as trainer:
        before = trainer.parameters()
        with pytest.raises(BatchError) as failure:
            trainer.step(batch)
        assert failure.value.code == "no-label-counts"
        with pytest.raises(DataError):
            trainer.evaluate([batch])
        for name, array in trainer.parameters().items():
            np.testing.assert_array_equal(array, before[name])


# What does not fit


def _refused(loss: Loss, forward: Forward) -> LossError | SettingError:
    with pytest.raises((LossError, SettingError)) as failure:
        compiled(forward, loss)
    assert failure.value.hint is not None
    return failure.value


@pytest.mark.parametrize(
    ("loss", "kind", "reference"),
    [
        (CausalLM(), "rows", "logits-rank"),
        (CausalLM(), "images", "logits-rank"),
        (CrossEntropy(class_weights=(1.0, 2.0)), "rows", "class-weights"),
        (CrossEntropy(class_axis=3), "rows", "bad-setting"),
        (CrossEntropy(class_weights=(0.0,) * 5), "rows", "bad-setting"),
        (CrossEntropy(), "images", "unknown-classes"),
        (CrossEntropy(class_axis=0), "rows", "bad-setting"),
        (Focal(class_weights=(1.0, 2.0)), "rows", "class-weights"),
        (SoftCrossEntropy(class_weights=(1.0, 2.0)), "rows", "class-weights"),
        (KLDivergence(class_axis=2), "rows", "bad-setting"),
        (Dice(), "rows", "logits-rank"),
        (BCEWithLogits((1.0, 2.0)), "rows", "class-weights"),
    ],
)
def test_losses_refuse_outputs_that_do_not_fit(loss: Loss, kind: str, reference: str) -> None:
    """A wrong rank, a wrong number of weights, an axis that is none: each is named, and nothing is built."""
    assert _refused(loss, linear(kind)).code == reference


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("cross_entropy", {"label_smoothing": 1.0}),
        ("cross_entropy", {"label_smoothing": -0.1}),
        ("causal_lm", {"label_smoothing": 1.5}),
        ("cross_entropy", {"class_weights": (1.0, -1.0)}),
        ("bce_with_logits", {"pos_weight": -1.0}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, setting: dict[str, object]) -> None:
    """When the loss is constructed, before any model is read."""
    with pytest.raises(SettingError, match=next(iter(setting))):
        by_name(name, **setting)


def test_cross_entropy_refuses_a_single_score_per_row() -> None:
    """A model with one number per row [batch] has no classes."""
    forward = linear()
    forward.model.graph.outputs[0].shape = ir.Shape(["batch"])
    assert _refused(CrossEntropy(), forward).code == "logits-rank"


def test_an_unknown_name_lists_those_that_exist() -> None:
    """A loss that does not exist is refused with the names of those that do."""
    with pytest.raises(SettingError) as failure:
        by_name("crossentropy")
    assert failure.value.code == "unknown-name"
    assert "cross_entropy" in str(failure.value)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_describe_themselves_by_their_name(name: str) -> None:
    """``kind`` in the manifest is the name, and the settings are JSON."""
    loss = by_name(name)
    assert loss.name == name
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in loss.values().items()}
    assert json.loads(json.dumps(loss.values())) == settings
