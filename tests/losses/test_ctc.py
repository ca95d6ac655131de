"""CTC has torch's values and gradients, for padded labels, empty ones, short inputs and any blank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edgepeft_export.errors import LossError
from edgepeft_export.losses import CTC
from edgepeft_runtime.errors import SettingError
from tests.support.linear_graphs import CLASSES, FEATURES, compiled, expected_of, leaves, linear, run, torch_logits

TARGETS = [[1, 2, 2, 1], [3, 3], [4], []]
"""With repetitions, of several lengths, one of them empty."""


@dataclass(frozen=True)
class Case:
    """A loss, the frames of each example, and the number of frames of the batch."""

    loss: CTC
    targets: list[list[int]]
    lengths: list[int] | None = None
    time: int = 9


CASES = {
    "padded": Case(CTC(), TARGETS),
    "blank-last": Case(CTC(blank=-1), [[0, 1, 1], [3], [2, 0, 2]]),
    "blank-2": Case(CTC(blank=2), [[0, 1, 1], [3], [4, 0, 4]]),
    "lengths": Case(CTC(frames="frames"), TARGETS, [9, 4, 1, 3]),
    "sums": Case(CTC(length_normalized=False), TARGETS),
    "exact-fit": Case(CTC(), [[1, 2, 3], [4, 4], [1]], time=3),
    "zero-infinity": Case(CTC(zero_infinity=True, frames="frames"), TARGETS, [9, 2, 0, 0]),
    "long": Case(CTC(), [[1, 2, 3, 4] * 10, [2] * 20], time=200),
}


def _padded(targets: list[list[int]], padding: int) -> Tensor:
    longest = max(map(len, targets))
    return torch.tensor([row + [padding] * (longest - len(row)) for row in targets])


def _oracle(case: Case, weights: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    loss, lengths = case.loss, torch.tensor([len(row) for row in case.targets])
    frames = torch.tensor(case.lengths or [case.time] * len(case.targets))

    def oracle(scores: Tensor, _: Tensor) -> Tensor:
        each = functional.ctc_loss(
            scores.log_softmax(-1).transpose(0, 1),
            torch.tensor([label for row in case.targets for label in row]),
            frames,
            lengths,
            loss.blank % CLASSES,
            "none",
            loss.zero_infinity,
        )
        if loss.length_normalized:
            each = each / lengths.clamp(min=1)
        return each.mean() if weights is None else (each * weights).sum() / weights.sum()

    return oracle


def _batch(case: Case, padding: int = -100, scale: float = 1.0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    batch = {
        "x": scale * torch.randn(len(case.targets), case.time, FEATURES, generator=draw),
        "labels": _padded(case.targets, padding),
    }
    return batch if case.lengths is None else {**batch, "frames": torch.tensor(case.lengths)}


def _assert_same(loss: CTC, oracle: Callable[[Tensor, Tensor], Tensor], batch: Mapping[str, Tensor]) -> None:
    forward = linear("tokens")
    value, gradients = expected_of(forward, "tokens", oracle, batch)
    result = run(compiled(forward, loss), batch)
    assert result.loss == pytest.approx(value, rel=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(result.gradients[name], gradient, rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_torch(name: str) -> None:
    """Loss and gradients of every parameter equal torch's."""
    case = CASES[name]
    _assert_same(case.loss, _oracle(case), _batch(case))


@pytest.mark.parametrize("padding", [-1, 0])
def test_labels_are_padded_by_the_blank_or_a_negative_label(padding: int) -> None:
    """Padding by 0, the blank, and by -1 are the same as by -100."""
    case = CASES["padded"]
    _assert_same(case.loss, _oracle(case), _batch(case, padding))


def test_examples_have_weights() -> None:
    """A weight of 0 leaves an example out; the mean is weighted."""
    case, weights = CASES["padded"], torch.tensor([0.5, 0.0, 2.0, 1.0])
    loss = CTC(example_weights="weights")
    _assert_same(loss, _oracle(case, weights), {**_batch(case), "weights": weights})


@pytest.mark.parametrize("name", ["padded", "long"])
def test_large_scores_do_not_overflow(name: str) -> None:
    """Paths of a log probability of -10000 and less have the loss and gradients of torch in double precision."""
    case, forward = CASES[name], linear("tokens")
    batch = _batch(case, scale=300.0)
    parameters = {key: tensor.detach().double().requires_grad_() for key, tensor in leaves(forward).items()}
    loss = _oracle(case)(torch_logits(batch["x"].double(), parameters), batch["labels"])
    loss.backward()
    result = run(compiled(forward, case.loss), batch)
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    for key, tensor in parameters.items():
        assert tensor.grad is not None
        expected = tensor.grad.numpy()
        np.testing.assert_allclose(result.gradients[key], expected, atol=1e-3 * np.abs(expected).max(), err_msg=key)


@pytest.mark.parametrize("targets", [[[1, 2, 3, 4]], [[1, 1]]])
def test_labels_that_do_not_fit_have_an_infinite_loss(targets: list[list[int]]) -> None:
    """More labels than frames, or a repetition without a frame for its blank: infinite as in torch, no NaN."""
    case = Case(CTC(), targets, time=2 if len(targets[0]) == 2 else 3)
    result = run(compiled(linear("tokens"), case.loss), _batch(case))
    assert result.loss == np.inf
    assert all(np.isfinite(gradient).all() for gradient in result.gradients.values())


def test_losses_of_uneven_batches_add_up_to_that_of_one() -> None:
    """The summed terms of batches of 1 and 3 examples are the loss of all 4."""
    case = CASES["padded"]
    step, whole = compiled(linear("tokens"), case.loss), _batch(case)
    parts = [run(step, {key: value[a:b] for key, value in whole.items()}) for a, b in ((0, 1), (1, 4))]
    together = run(step, whole)
    assert sum(part.sum for part in parts) == pytest.approx(together.sum, rel=1e-5)
    assert sum(part.weight for part in parts) == together.weight == 4


def test_frames_may_be_the_first_axis() -> None:
    """Scores [time, batch, classes], as torch's loss has them."""
    case = CASES["padded"]
    batch = _batch(case)
    batch["x"] = batch["x"].transpose(0, 1).contiguous()
    forward = linear("tokens")
    value, gradients = expected_of(
        forward, "tokens", lambda scores, labels: _oracle(case)(scores.transpose(0, 1), labels), batch
    )
    result = run(compiled(forward, CTC(time_axis=0)), batch)
    assert result.loss == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(result.gradients["w"], gradients["w"], rtol=1e-4, atol=2e-5)


def test_the_loss_of_evaluation_is_that_of_training() -> None:
    """The graph without a backward pass computes the same loss."""
    case = CASES["padded"]
    step, batch = compiled(linear("tokens"), case.loss), _batch(case)
    proto = ir.to_proto(step.graphs["eval"]).SerializeToString()
    session = onnxruntime.InferenceSession(proto)
    fed = {**{name: tensor.numpy() for name, tensor in batch.items()}, **step.parameters}
    total, weight = session.run(["loss_sum", "loss_weight"], fed)
    assert total / weight == pytest.approx(run(step, batch).loss, rel=1e-6)
    assert not any(node.op_type == "ScatterElements" for node in step.graphs["eval"].graph)


@pytest.mark.parametrize(("loss", "kind"), [(CTC(), "rows"), (CTC(), "images")])
def test_scores_of_another_rank_are_refused(loss: CTC, kind: str) -> None:
    """CTC reads scores per frame and class."""
    with pytest.raises(LossError) as failure:
        compiled(linear(kind), loss)
    assert failure.value.code == "logits-rank"


@pytest.mark.parametrize("loss", [CTC(blank=5), CTC(blank=-6), CTC(time_axis=2)])
def test_settings_that_do_not_fit_are_refused(loss: CTC) -> None:
    """A blank that is no class, and an axis that cannot be that of the frames."""
    with pytest.raises(SettingError):
        compiled(linear("tokens"), loss)
