"""Pruned heads, neurons and channels are really gone, and the others compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import edgepeft
from edgepeft.compress import Pruning, prune
from edgepeft.compress.channels import channel_groups
from edgepeft.compress.errors import PruneError
from edgepeft.compress.groups import Group
from edgepeft.compress.transformer import transformer_groups
from edgepeft.methods import Full, Lora, attach
from edgepeft_export.optimizers import SGD
from edgepeft_runtime import Trainer
from edgepeft_runtime.errors import EdgepeftError
from tests.support.networks import NETWORKS, Batch, to_numpy, torch_loss

TEXT = {"input_ids": torch.tensor([[5, 9, 14, 3], [7, 4, 6, 11]]), "attention_mask": torch.ones(2, 4, dtype=torch.long)}


def _small(kind: str) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    if kind == "distilbert":
        settings = transformers.DistilBertConfig(vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
        return transformers.DistilBertForSequenceClassification(settings)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    sizes["vocab_size"] = 99
    if kind == "roberta":
        return transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**sizes))
    return transformers.ElectraForSequenceClassification(transformers.ElectraConfig(embedding_size=16, **sizes))


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{name: NETWORKS[name].model for name in ("bert", "gpt2", "llama", "vit")},
    **{kind: (lambda kind=kind: _small(kind)) for kind in ("distilbert", "roberta", "electra")},
}


def _example(name: str) -> Batch:
    return NETWORKS[name].example() if name in NETWORKS else TEXT


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    model.eval()
    with torch.no_grad():
        result = model(**batch)
    return result if isinstance(result, Tensor) else result.logits


def _silence(group: Group, units: list[int]) -> None:
    """Set to zero the weights that rate these units, and the norms after channels."""
    for part in group.slices:
        if (part.scored or group.kind == "channels") and part.tensor not in ("running_mean", "running_var"):
            part.value().data.index_fill_(part.axis, part.indices[units].flatten(), 0.0)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_kept_units_replace_removed_ones(name: str) -> None:
    """With calibration data the layers after a cut are refitted, so outputs stay nearer to the original ones."""
    network = NETWORKS[name]
    seen = [inputs for inputs, _ in network.batches(40)]
    other = seen[-1]
    expected, off = _logits(network.model(), other), {}
    for batches in (None, seen[:-1]):
        model, _ = prune(network.model(), Pruning(ffn=0.5, heads=0.5), batches)
        off[batches is None] = float((_logits(model, other) - expected).norm())
    assert off[False] < 0.95 * off[True]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("score", ["magnitude", "taylor", "wanda"])
def test_units_that_do_nothing_are_those_removed(name: str, score: str) -> None:
    """Half of the heads and neurons, set to zero, are removed without a change of the logits, for every score."""
    model, example = MODELS[name](), _example(name)
    for group in transformer_groups(model):
        _silence(group, list(range(1, group.units, 2)))
    before = _logits(model, example)
    labels = example["input_ids"] if name in ("gpt2", "llama") else torch.tensor([0, 1])
    model, report = prune(model, Pruning(heads=0.5, ffn=0.5, score=score), [{**example, "labels": labels}])
    assert (_logits(model, example) - before).abs().max() < 1e-6
    assert report.parameters_after == sum(p.numel() for p in model.parameters()) < report.parameters_before
    shapes = {parameter: tuple(tensor.shape) for parameter, tensor in model.named_parameters()}
    assert all(shapes[change.name] == change.after != change.before for change in report.changes)


class Normed(nn.Module):
    """Group norm on a residual, a concatenation, and a linear layer over flattened channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.norm, self.bn = nn.GroupNorm(4, 8), nn.BatchNorm2d(12)
        self.head = nn.Linear(12 * 16, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.a(image)))
        x = x + self.b(x)
        return self.head(torch.relu(self.bn(torch.cat([x, self.c(x)], dim=1))).flatten(1))


@pytest.mark.parametrize("score", ["magnitude", "taylor", "wanda"])
@pytest.mark.parametrize("kind", ["cnn", "normed"])
def test_channels_that_do_nothing_are_those_removed(kind: str, score: str) -> None:
    """Batch norm, group norm, depthwise, residual, concatenation and flattening shrink together."""
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    model = NETWORKS["cnn"].model() if kind == "cnn" else Normed()
    example = NETWORKS["cnn"].example() if kind == "cnn" else {"image": torch.randn(2, 3, 4, 4)}
    example = {"image": torch.randn_like(example["image"])}
    model.eval()
    for group in channel_groups(model, example):
        _silence(group, list(range(1, group.units, 2)))
    before = _logits(model, example)
    model, report = prune(
        model, Pruning(channels=0.5, score=score), [example], loss=lambda m, batch: m(**batch).square().sum()
    )
    assert (_logits(model, example) - before).abs().max() < 1e-5
    assert report.parameters_after < 0.6 * report.parameters_before


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "vit")]


@pytest.mark.parametrize("name", ["gpt2", "llama", "cnn", *SLOW])
def test_a_pruned_model_trains_on_the_device_as_in_torch(name: str, tmp_path: Path) -> None:
    """Two steps of the exported pruned model give the losses of PyTorch."""
    network = NETWORKS[name]
    if name == "cnn":
        pytest.importorskip("torch_pruning")
    settings = Pruning(channels=0.25) if name == "cnn" else Pruning(heads=0.5, ffn=0.3)
    model, _ = prune(network.model(), settings, example_inputs=network.example())
    model = attach(Full() if network.lora is None else Lora(rank=4, target_modules=network.lora), model)
    edgepeft.prepare(model, network.example(), loss=network.loss, optimizer=SGD(lr=0.05), out=tmp_path / "b")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.eval()
    with Trainer.open(tmp_path / "b") as trainer:
        for inputs, labels in network.batches(2):
            optimizer.zero_grad()
            loss = torch_loss(model, inputs, labels, network.loss)
            loss.backward()
            optimizer.step()
            assert trainer.step(to_numpy(inputs, labels)) == pytest.approx(loss.item(), rel=1e-4)


def test_grouped_queries_keep_their_repeat_factor() -> None:
    """Of 4 heads on 2 key/value heads, one key/value head and both its query heads stay in every layer."""
    model, _ = prune(MODELS["llama"](), Pruning(heads=0.5))
    for layer in model.model.layers:
        assert layer.self_attn.q_proj.weight.shape == (16, 32)
        assert layer.self_attn.k_proj.weight.shape == layer.self_attn.v_proj.weight.shape == (8, 32)
        assert layer.self_attn.o_proj.weight.shape == (32, 16)


def test_a_pruned_model_is_loaded_into_one_pruned_alike() -> None:
    """Shapes follow from the shares alone: another score's tensors load into a model pruned by magnitude."""
    batch = {**TEXT, "labels": torch.tensor([0, 1])}
    model, _ = prune(MODELS["bert"](), Pruning(heads=0.25, ffn=0.3, score="taylor"), [batch])
    again, _ = prune(MODELS["bert"](), Pruning(heads=0.25, ffn=0.3))
    again.load_state_dict(model.state_dict())
    assert torch.equal(_logits(again, TEXT), _logits(model, TEXT))


def test_a_fraction_of_zero_changes_nothing() -> None:
    """The default settings leave every tensor as it is."""
    model, report = prune(MODELS["bert"](), Pruning())
    for mine, other in zip(model.parameters(), MODELS["bert"]().parameters(), strict=True):
        assert torch.equal(mine, other)
    assert not report.changes and report.parameters_after == report.parameters_before


def test_modules_to_keep_are_left_alone() -> None:
    """A pattern spares a layer; the other one shrinks."""
    model, report = prune(MODELS["bert"](), Pruning(ffn=0.5, keep=("bert.encoder.layer.0.*",)))
    assert {change.name.split(".")[3] for change in report.changes} == {"1"}
    assert model.bert.encoder.layer[0].intermediate.dense.out_features == 64


def test_the_command_line_s_text_becomes_settings() -> None:
    """Every key can be written, spaces do not matter, and keep may be given again."""
    text = "heads=0.25, ffn=0.3,channels=0.1,pattern=2:4,score=wanda,keep=a.*,keep=b"
    expected = Pruning(heads=0.25, ffn=0.3, channels=0.1, n_m=(2, 4), score="wanda", keep=("a.*", "b"))
    assert Pruning.parse(text) == expected
    assert Pruning.parse("weights=0.5").as_provenance() == {"weights": 0.5}


@pytest.mark.parametrize(
    "text",
    ["heads=1", "ffn=-0.1", "heads=nan", "ffn=x", "heads", "head=0.2", "pattern=4:2", "pattern=24", "score=best",
     "weights=0.01", "pattern=99:100", "weights=0.5,pattern=2:4", "ffn=0.1,ffn=0.2"],
)  # fmt: skip
def test_settings_out_of_range_are_refused(text: str) -> None:
    """An impossible value is an error that names the setting."""
    with pytest.raises(PruneError) as caught:
        Pruning.parse(text)
    assert caught.value.code == "prune-setting"


CASES = {
    "prune-all": (lambda: MODELS["bert"](), Pruning(heads=0.9), None),
    "nothing-to-prune": (lambda: nn.Sequential(nn.Linear(2, 2)), Pruning(heads=0.5), None),
    "no-calibration": (lambda: MODELS["bert"](), Pruning(heads=0.5, score="wanda"), None),
    "no-calibration-loss": (lambda: MODELS["bert"](), Pruning(heads=0.5, score="taylor"), [TEXT]),
    "no-example": (lambda: NETWORKS["cnn"].model(), Pruning(channels=0.5), None),
}


@pytest.mark.parametrize("reference", CASES)
def test_what_cannot_be_pruned_is_said_and_nothing_changes(reference: str) -> None:
    """An error names its cause, and leaves the model whole."""
    make, settings, calibration = CASES[reference]
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    required = [p.requires_grad for p in model.parameters()]
    with pytest.raises(EdgepeftError) as caught:
        prune(model, settings, calibration)
    assert caught.value.code == reference
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert required == [p.requires_grad for p in model.parameters()]
