"""The measured distance of a quantized model from the fp32 one, and the refusal of what loses too much."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import edgepeft
from edgepeft.preparation.accuracy import Accuracy, measure
from edgepeft.preparation.errors import AccuracyLost
from edgepeft.preparation.options import Compression
from edgepeft_export import losses
from edgepeft_export.forward import Forward, from_torch
from edgepeft_export.losses import CausalLM, CrossEntropy
from edgepeft_export.quantize import Quantization, QuantizationReport, quantize
from edgepeft_export.quantize.choose import Batch
from edgepeft_runtime import Trainer

VOCABULARY, WIDTH = 64, 32


class Decoder(nn.Module):
    """A decoder whose second matmul reads a massive activation of the first token, as language models have them."""

    def __init__(self, massive: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 96), nn.Linear(96, WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.massive = massive

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.table(input_ids)
        wide = torch.tanh(self.up(hidden))
        first = (torch.arange(input_ids.shape[1]) == 0).to(wide.dtype)[:, None]
        spike = (torch.arange(96) == 5).to(wide.dtype)
        return self.head(3 * self.norm(self.down(wide + self.massive * first * spike)))


def _decoder(massive: float) -> nn.Module:
    model = Decoder(massive).requires_grad_(False)
    model.up.bias.requires_grad_(True)
    with torch.no_grad():
        model.down.weight[:, 5] *= 0.1
    return model


def _ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(seed))


def _exported(massive: float) -> Forward:
    return from_torch(_decoder(massive), {"input_ids": _ids()})


def _batches() -> list[Batch]:
    return [{"input_ids": _ids(seed).numpy()} for seed in (1, 2)]


def _twin_divergence(massive: float, quantized: list[str], batches: list[Batch]) -> float:
    """exp(KL) of torch with the rounded weights and exact activations, in float64."""
    from edgepeft_export.graph.rounding import to_int8

    exact, twin = _decoder(massive).double(), _decoder(massive).double()
    state = dict(twin.named_parameters())
    for name in quantized:
        matrix = to_int8(state[name].detach().float().numpy(), 0)
        state[name].data = torch.from_numpy(matrix.values * matrix.scale[:, None].astype(np.float64))
    total, count = 0.0, 0
    for batch in batches:
        ids = torch.from_numpy(np.asarray(batch["input_ids"]))
        with torch.no_grad():
            p, q = (model(ids).log_softmax(-1) for model in (exact, twin))
        total, count = total + float((p.exp() * (p - q)).sum()), count + ids.numel()
    return float(np.exp(total / count))


def test_a_massive_activation_needs_rows_and_the_data_shows_it() -> None:
    """With rows the perplexity is that of torch with the same weights; one scale per tensor ruins it."""
    forward, batches = _exported(3000.0), _batches()
    settings = Quantization("int8", smallest=64, tolerance=10.0)  # no weight stays fp32
    by_row, report = quantize(forward, settings, batches)
    assert set(report.rows) == {"down.weight"}
    tensor, _ = quantize(forward, settings, batches, decided=QuantizationReport())
    lost, ours = (measure(forward, model, CausalLM(), batches) for model in (tensor, by_row))
    assert lost is not None and ours is not None
    assert lost.value > 1.1 and not lost.tolerable
    names = [name.removesuffix(".int8") for name in report.quantized]
    assert ours.value == pytest.approx(_twin_divergence(3000.0, names, batches), abs=2e-3)
    assert ours.value < 1.01 and ours.tolerable and ours.rows == 96


def test_without_data_the_inputs_of_the_verification_decide() -> None:
    """The example's tokens show the massive activation as well; a model without one keeps one scale per tensor."""
    assert set(quantize(_exported(3000.0), Quantization("int8", smallest=64))[1].rows) == {"down.weight"}
    assert quantize(_exported(0.0), Quantization("int8", smallest=64))[1].rows == {}
    unknown = replace(_exported(0.0), verified=replace(_exported(0.0).verified, examples=()))
    assert set(quantize(unknown, Quantization("int8", smallest=64))[1].rows) == {
        "table.weight",
        "up.weight",
        "down.weight",
        "head.weight",
    }


def test_a_language_model_rounds_rows_and_trains(tmp_path: Path) -> None:
    """``prepare`` says the perplexity in one line, every matmul rounds rows, and a step's loss is that of fp32."""
    said: list[str] = []
    given = {"loss": "causal_lm", "overwrite": True}
    compute = Quantization("int8", smallest=64)
    model, ids = _decoder(3000.0), {"input_ids": _ids()}
    out = edgepeft.prepare(model, ids, out=tmp_path / "b", compute=compute, on_progress=said.append, **given).bundle
    (line,) = [line for line in said if "perplexity" in line]
    assert line.startswith("int8: the perplexity is 1.0") and "tokens of generated inputs" in line
    nodes = [node.op_type for node in onnx.load(out / "infer.onnx", load_external_data=False).graph.node]
    assert nodes.count("MatMulIntegerToFloat") == 3
    assert nodes.count("QuantizeLinear") == 4  # two of the massive activation
    assert "DynamicQuantizeLinear" not in nodes
    with Trainer.open(out) as trainer:
        loss = trainer.step({"input_ids": _ids(5).numpy(), "labels": _ids(5).numpy()}, lr=0.0)
    with torch.no_grad():
        logits = model(_ids(5))
    exact = nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), _ids(5)[:, 1:].reshape(-1))
    assert loss == pytest.approx(float(exact), rel=1e-2)


def _damaged(factor: float = 3000.0) -> nn.Module:
    """A classifier whose middle weight has one large column per row: the others vanish in its step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 6))
    with torch.no_grad():
        model[2].weight[:, 0] *= factor
        model[0].weight[0], model[0].bias[0] = 0, -1
    model.requires_grad_(False)
    model[4].bias.requires_grad_(True)
    return model


def test_what_loses_too_much_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    """No bundle is written; the error has the figure and the ways out, which work."""
    x, compute = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)), Quantization("int8")
    with pytest.raises(AccuracyLost, match="of the predicted classes are those of fp32") as caught:
        edgepeft.prepare(_damaged(), x, out=tmp_path / "b", compute=compute)
    assert "--allow-accuracy-loss" in str(caught.value.hint) and not (tmp_path / "b").exists()
    allowed = Compression(allow_accuracy_loss=True)
    assert edgepeft.prepare(_damaged(), x, out=tmp_path / "b", compute=compute, compression=allowed).bundle.exists()
    kept = replace(compute, keep=("2",))
    assert edgepeft.prepare(_damaged(), x, out=tmp_path / "c", compute=kept).bundle.exists()


@pytest.mark.parametrize(
    ("same", "rows", "tolerable"), [(30, 34, True), (27, 34, False), (930, 1000, False), (940, 1000, True)]
)
def test_a_few_examples_that_differ_by_chance_refuse_nothing(same: int, rows: int, tolerable: bool) -> None:
    """The bounds are those of a binomial test at 99 %."""
    accuracy = Accuracy("agreement", same / rows, rows, calibrated=False)
    differ = rows - same
    chance = 1 - sum(math.comb(rows, k) * 0.05**k * 0.95 ** (rows - k) for k in range(differ))
    assert accuracy.tolerable == tolerable == (chance > 0.01)


def test_a_new_head_is_judged_by_its_features(tmp_path: Path) -> None:
    """Rounding that changes random classes is accepted where the features stay what they are."""
    x, said = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), list[str]()
    measured = []
    for factor in (50.0, 3000.0):
        forward = from_torch(_damaged(factor), x)
        rounded = quantize(forward, Quantization("int8"))[0]
        measured += [measure(forward, rounded, CrossEntropy(), None, new_head=new) for new in (False, True)]
    assert [accuracy is not None and accuracy.tolerable for accuracy in measured] == [False, True, False, False]
    source = edgepeft.Source(_damaged(50.0), {"input": x}, new_head=True)
    edgepeft.prepare(source, out=tmp_path / "b", compute=Quantization("int8"), on_progress=said.append)
    assert sum("the scores of the new head differ from fp32 by" in line for line in said) == 1


def test_the_kind_of_measure_follows_the_loss() -> None:
    """Classes for a classifier, a relative error without a limit for everything else."""
    forward = from_torch(_damaged(), torch.randn(16, 64))
    rounded = quantize(forward, Quantization("int8"))[0]
    classes = measure(forward, rounded, CrossEntropy(), None)
    other = measure(forward, rounded, losses.by_name("mse"), None)
    assert classes is not None and classes.kind == "agreement" and not classes.tolerable
    assert other is not None and other.kind == "error" and other.tolerable and other.value > 0.2
    same = measure(forward, forward, CrossEntropy(), None)
    assert same == Accuracy("agreement", 1.0, classes.rows, calibrated=False)
