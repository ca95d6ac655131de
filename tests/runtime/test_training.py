"""The trainer's verbs on a real bundle in real onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.specs import LabelSpec, LossSpec, TensorSpec
from edgepeft_runtime.engine.engine import TrainState
from edgepeft_runtime.engine.evaluate import count_correct
from edgepeft_runtime.errors import (
    BadSetting,
    BatchError,
    DataError,
    NotFinite,
    StateError,
    TrainingError,
    WrongTensors,
)
from edgepeft_runtime.files.tensorfile import write_tensors
from edgepeft_runtime.train.trainer import Trainer
from tests.support.damage import Copy, assert_equal_bits, resigned, rows
from tests.support.tiny_bundle import examples


def torch_steps(bundle: Path, batches: list[dict[str, np.ndarray]], lr: float) -> tuple[list[float], list[np.ndarray]]:
    """Losses and final parameters of the same model trained by torch's AdamW."""
    base = torch.from_numpy(np.fromfile(bundle / "weights.bin", np.float32).reshape(4, 6))
    weight, scale, bias = (
        torch.nn.Parameter(torch.from_numpy(a.copy())) for a in Bundle.open(bundle).adapter().values()
    )
    groups = [{"params": [weight], "weight_decay": 0.01}, {"params": [scale, bias], "weight_decay": 0.0}]
    optimizer, losses = torch.optim.AdamW(groups, lr=lr), []
    for batch in batches:
        logits = torch.tanh(torch.from_numpy(batch["x"]) @ base) @ weight * scale + bias
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch["labels"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [parameter.detach().numpy() for parameter in (weight, scale, bias)]


def test_steps_equal_those_of_torch(bundle: Path) -> None:
    """Losses and parameters follow torch's AdamW step by step, with batches of different sizes and ignored labels."""
    batches = [examples(size, seed=size) for size in (8, 1, 13, 8, 64)]
    batches[0]["labels"][2] = -100
    losses, parameters = torch_steps(bundle, batches, lr=0.02)
    with Trainer.open(bundle) as trainer:
        found = [trainer.step(batch, lr=0.02) for batch in batches]
        np.testing.assert_allclose(found, losses, rtol=1e-5)
        for ours, theirs in zip(trainer.parameters().values(), parameters, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        assert (trainer.steps, trainer.examples) == (5, 94)


@pytest.mark.parametrize("cuts", [(4, 8, 12), (1,), (3, 5, 15), tuple(range(1, 16))])
def test_accumulation_equals_one_large_batch(cuts: tuple[int, ...], sgd_bundle: Path) -> None:
    """However a batch is cut, evenly or not, loss and update are the same; ignored labels weigh nothing."""
    whole = examples(16)
    whole["labels"][[0, 5, 6]] = -100
    edges = (0, *cuts, 16)
    parts = [rows(whole, start, stop) for start, stop in pairwise(edges)]
    with Trainer.open(sgd_bundle) as one, Trainer.open(sgd_bundle) as many:
        for _ in range(3):
            assert many.step(*parts, lr=0.5) == pytest.approx(one.step(whole, lr=0.5), rel=1e-6)
        for name, array in one.parameters().items():
            np.testing.assert_allclose(many.parameters()[name], array, rtol=1e-5, atol=1e-7)
        assert many.steps == one.steps == 3


def test_refused_batch_changes_nothing(bundle: Path) -> None:
    """After an error the trainer is unchanged, and can continue."""
    good = examples(8)
    bad = {**good, "x": good["x"] * np.float32(np.nan)}
    with Trainer.open(bundle) as trainer, Trainer.open(bundle) as other:
        before = trainer.parameters()
        for batches in ((bad,), (good, bad)):
            with pytest.raises(NotFinite):
                trainer.step(*batches)
        assert_equal_bits(trainer.parameters(), before)
        assert (trainer.steps, trainer.examples) == (0, 0)
        assert trainer.step(good) == other.step(good)


def test_step_without_a_label_that_counts_is_refused(bundle: Path) -> None:
    """There is nothing to learn from; but one empty micro-batch among others does no harm."""
    ignored = {**examples(4), "labels": np.full(4, -100)}
    with Trainer.open(bundle) as trainer:
        with pytest.raises(BatchError) as error:
            trainer.step(ignored, ignored)
        assert error.value.code == "no-label-counts"
        assert np.isfinite(trainer.step(ignored, examples(4)))
        with pytest.raises(DataError):
            trainer.evaluate(ignored)


def test_diverging_run_keeps_the_last_good_parameters(sgd_bundle: Path, tmp_path: Path) -> None:
    """Steps with an absurd learning rate end in an error, and everything is as before the step that failed."""
    batch = examples(16)
    with Trainer.open(sgd_bundle, state=tmp_path / "state") as trainer:
        while (error := failure(trainer, batch, lr=1e19)) is None:
            before, steps = trainer.parameters(), trainer.steps
        assert error.code == "diverged"
        assert_equal_bits(trainer.parameters(), before)
        assert trainer.steps == steps
        assert all(np.isfinite(array).all() for array in trainer.parameters().values())
        trainer.save()


def test_gradient_that_is_not_finite_changes_nothing(bundle: Path) -> None:
    """The loss can still be a number where the norm of its gradient is none."""
    adapter = Bundle.open(bundle).adapter()
    adapter["head.weight"] *= np.float32(1e21)
    with Trainer.open(bundle, adapter=adapter) as trainer:
        assert np.isfinite(trainer.evaluate(examples(8)).loss)
        with pytest.raises(TrainingError, match="gradient of step 1"):
            trainer.step(examples(8))
        assert_equal_bits(trainer.parameters(), adapter)
        assert (trainer.steps, trainer.examples) == (0, 0)


def failure(trainer: Trainer, batch: dict[str, np.ndarray], lr: float) -> TrainingError | None:
    """The error of a step, if there is one."""
    try:
        trainer.step(batch, lr=lr)
    except TrainingError as error:
        return error
    return None


def test_parameters_that_overflowed_are_neither_saved_nor_sent(sgd_bundle: Path, tmp_path: Path) -> None:
    """Loss and gradient can be finite where the sum of parameter and change is not; the last checkpoint stays."""
    with Trainer.open(sgd_bundle, state=tmp_path / "state") as trainer:
        trainer.save()
        kept = (tmp_path / "state" / "checkpoint.safetensors").read_bytes()
        trainer.session.run = replace(trainer.session.run, state=overflowed(trainer))
        for write in (trainer.save, lambda: trainer.save_update(tmp_path / "update")):
            with pytest.raises(TrainingError, match="not finite"):
                write()
        assert (tmp_path / "state" / "checkpoint.safetensors").read_bytes() == kept
        assert not (tmp_path / "update").exists()


def overflowed(trainer: Trainer) -> TrainState:
    """The trainer's values with one infinity."""
    parameters = {**trainer.parameters(), "head.bias": np.array([0, np.inf, 0], np.float32)}
    return trainer.session.engine.load(parameters)


@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf")])
def test_impossible_learning_rates_are_refused(lr: float, bundle: Path) -> None:
    """Before anything is computed."""
    with Trainer.open(bundle) as trainer, pytest.raises(BadSetting, match="learning rate"):
        trainer.step(examples(4), lr=lr)


def test_evaluation_does_not_depend_on_the_batch_size(bundle: Path) -> None:
    """The last short batch weighs by its examples; ignored labels count in neither loss nor accuracy."""
    data = examples(37)
    data["labels"][::5] = -100
    with Trainer.open(bundle) as trainer:
        whole = trainer.evaluate(data, batch_size=37)
        for size in (1, 8, 36):
            found = trainer.evaluate(data, batch_size=size)
            assert found.loss == pytest.approx(whole.loss, rel=1e-6)
            assert (found.accuracy, found.examples) == (whole.accuracy, 37)
        logits, counts = trainer.predict(data)["logits"], data["labels"] != -100
        assert whole.accuracy == (logits.argmax(1) == data["labels"])[counts].mean()


def test_accuracy_of_a_causal_language_model_is_shifted(bundle: Path) -> None:
    """Position t answers token t + 1, and ignored tokens do not count."""
    manifest = Bundle.open(bundle).manifest
    causal = replace(
        manifest,
        labels=(LabelSpec("labels", "int64", ("batch", 4), 5, -100),),
        outputs=(TensorSpec("logits", "float32", ("batch", 4, 5)),),
        loss=LossSpec("causal_lm"),
    )
    scores = np.eye(5, dtype=np.float32)[[[1, 2, 3, 4], [0, 0, 0, 0]]]
    labels = np.array([[0, 1, 2, 4], [0, 0, -100, 3]])
    assert count_correct({"logits": scores}, {"labels": labels}, causal) == (3, 5)
    assert count_correct({"logits": scores}, {"labels": labels}, replace(causal, loss=LossSpec("mse"))) == (0, 0)
    assert count_correct({"logits": scores}, {"labels": labels[:, 0]}, replace(causal, loss=manifest.loss)) == (0, 0)


def test_prediction_in_batches_equals_prediction_at_once(bundle: Path) -> None:
    """Also where the last batch is short, and where labels come along."""
    data = examples(11)
    with Trainer.open(bundle) as trainer:
        whole = trainer.predict(data)["logits"]
        assert whole.shape == (11, 3)
        np.testing.assert_allclose(trainer.predict(data, batch_size=4)["logits"], whole, rtol=1e-6)
        many = {"x": np.tile(data["x"], (10, 1))}  # more than the bundle accepts at once
        assert trainer.predict(many, batch_size=50)["logits"].shape == (110, 3)
        for refused in (many, {"x": data["x"][:0]}):
            with pytest.raises(BatchError):
                trainer.predict(refused)


def test_predicting_with_another_adapter_keeps_the_own(bundle: Path, tmp_path: Path) -> None:
    """By path, by update and by mapping; the trainer's next step is the one it would have been."""
    data = examples(8)
    with Trainer.open(bundle) as trainer, Trainer.open(bundle) as tuned:
        before, own = trainer.parameters(), trainer.predict(data)["logits"]
        for _ in range(5):
            tuned.step(data)
        write_tensors(tmp_path / "adapter.safetensors", tuned.parameters())
        update, expected = tuned.save_update(tmp_path / "update.safetensors"), tuned.predict(data)["logits"]
        for adapter in (tmp_path / "adapter.safetensors", str(update), tuned.parameters()):
            np.testing.assert_array_equal(trainer.predict(data, adapter=adapter)["logits"], expected)
        np.testing.assert_array_equal(trainer.predict(data)["logits"], own)
        assert_equal_bits(trainer.parameters(), before)
        with pytest.raises(WrongTensors):
            trainer.predict(data, adapter={"head.bias": np.zeros(3, np.float32)})


def test_parameters_are_copies(bundle: Path) -> None:
    """Writing into returned or passed arrays changes nothing."""
    data, given = examples(4), Bundle.open(bundle).adapter()
    with Trainer.open(bundle, adapter=given) as trainer:
        before = trainer.predict(data)["logits"]
        given["head.weight"][:] = 7
        trainer.parameters()["head.weight"][:] = 7
        np.testing.assert_array_equal(trainer.predict(data)["logits"], before)


def test_read_only_batches_are_accepted(bundle: Path) -> None:
    """Mapped and broadcast arrays are often read-only."""
    data = examples(4)
    for array in data.values():
        array.flags.writeable = False
    with Trainer.open(bundle) as trainer:
        assert np.isfinite(trainer.step(data))


def test_failure_of_onnxruntime_is_a_user_error(copy: Copy) -> None:
    """A graph that cannot run with a shape the manifest allows: the node's name comes through, nothing is lost."""
    path = copy()
    model = onnx.load(path / "train.onnx", load_external_data=False)
    ten = onnx.numpy_helper.from_array(np.array([10, 4]), "ten")
    model.graph.initializer.append(ten)
    model.graph.node.insert(0, onnx.helper.make_node("Reshape", ["x", "ten"], ["x.ten"], name="only/ten"))
    model.graph.node[1].input[0] = "x.ten"
    (path / "train.onnx").write_bytes(model.SerializeToString())
    with Trainer.open(resigned(path)) as trainer:
        before = trainer.parameters()
        with pytest.raises(TrainingError, match="only/ten"):
            trainer.step(examples(4))
        assert_equal_bits(trainer.parameters(), before)
        assert np.isfinite(trainer.step(examples(10)))


def test_saving_needs_a_state_directory(bundle: Path) -> None:
    """The hint says how to get one."""
    with Trainer.open(bundle) as trainer, pytest.raises(StateError, match="state="):
        trainer.save()


def test_settings_of_opening_are_checked(bundle: Path) -> None:
    """A negative seed and no threads at all."""
    with pytest.raises(BadSetting, match="seed"):
        Trainer.open(bundle, seed=-1)
    with pytest.raises(BadSetting, match="threads"):
        Trainer.open(bundle, threads=0)
