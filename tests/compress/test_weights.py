"""Masks keep their zeros through training and merge; codebooks make bundles small."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import edgepeft
from edgepeft.compress import Pruning, fix_masks, keep_masks, prune
from edgepeft.methods import Freeze, Full, Lora, attach
from edgepeft_export.optimizers import SGD, AdamW
from edgepeft_export.quantize import Quantization
from edgepeft_export.quantize.codebook import codebook
from edgepeft_runtime import Trainer
from edgepeft_runtime.errors import BadSetting
from tests.support.networks import NETWORKS, to_numpy

BERT = NETWORKS["bert"]


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
@pytest.mark.parametrize("score", ["magnitude", "taylor", "wanda"])
def test_two_of_four_weights_stay(name: str, score: str) -> None:
    """Along the inputs, each run of four has two zeros, in a Conv1D too; head and embeddings are not masked."""
    network = NETWORKS[name]
    example = network.example()
    labels = example["input_ids"] if name == "gpt2" else torch.tensor([0, 1])
    model, report = prune(network.model(), Pruning(n_m=(2, 4), score=score), [{**example, "labels": labels}])
    for masked in report.masked:
        weight = model.get_parameter(masked).detach()
        along = weight.T if name == "gpt2" else weight.flatten(2).movedim(1, -1) if weight.dim() > 2 else weight
        assert ((along.reshape(-1, 4) == 0).sum(1) == 2).all()
    assert not [masked for masked in report.masked if "classifier" in masked or "embeddings.word" in masked]
    assert {c.name: c.zeros for c in report.changes} == {
        masked: model.get_parameter(masked).numel() // 2 for masked in report.masked
    }


@pytest.mark.parametrize("score", ["magnitude", "taylor", "wanda"])
def test_a_fraction_of_single_weights_is_zero(score: str) -> None:
    """30 % of each matrix are zero, and what is left is untouched."""
    plain = BERT.model()
    batch = {**BERT.example(), "labels": torch.tensor([0, 1])}
    model, report = prune(BERT.model(), Pruning(weights=0.3, score=score), [batch])
    assert len(report.masked) == 13
    for masked in report.masked:
        weight, old = model.get_parameter(masked), plain.get_parameter(masked)
        assert (weight == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
        assert torch.equal(weight[weight != 0], old[weight != 0])


def test_masks_hold_where_the_weights_train(tmp_path: Path) -> None:
    """AdamW with weight decay on the device moves the weights and not one of the zeros, and the result loads."""
    model, report = prune(BERT.model(), Pruning(weights=0.5))
    weights = [model.get_parameter(name) for name in report.masked]
    zeros = {name: model.get_parameter(name).detach() == 0 for name in report.masked}
    model = attach(Full(), model)
    masks = keep_masks(model, weights)
    assert [f"{name}.weight" for name in masks] == list(report.masked)
    edgepeft.prepare(
        model, BERT.example(), loss="cross_entropy", optimizer=AdamW(lr=1e-2, weight_decay=0.1), out=tmp_path / "b"
    )
    with Trainer.open(tmp_path / "b") as trainer:
        for inputs, labels in BERT.batches(3):
            trainer.step(to_numpy(inputs, labels))
        predicted = trainer.predict({name: array.numpy() for name, array in BERT.example().items()})["logits"]
        trainer.save_update(tmp_path / "u.safetensors")
    edgepeft.merge(tmp_path / "b", tmp_path / "u.safetensors", to="torch", out=tmp_path / "m.safetensors")
    from safetensors.torch import load_file

    old = {name: weight.detach().clone() for name, weight in zip(masks, weights, strict=True)}
    model.load_state_dict(load_file(tmp_path / "m.safetensors"), strict=False)
    fix_masks(model).eval()
    assert set(model.state_dict()) == set(BERT.model().state_dict())
    for name, mask in zeros.items():
        assert torch.equal(model.get_parameter(name) == 0, mask)
        assert not torch.equal(model.get_parameter(name), old[name.removesuffix(".weight")])
    with torch.no_grad():
        assert np.abs(model(**BERT.example()).logits.numpy() - predicted).max() < 1e-4


def test_merging_leaves_a_branch_with_a_masked_weight(tmp_path: Path) -> None:
    """LoRA next to masked weights is not folded: the zeros and the device's answers stay."""
    model, report = prune(BERT.model(), Pruning(n_m=(2, 4)))
    model = attach(Lora(rank=4, target_modules=("query", "value")), model)
    edgepeft.prepare(model, BERT.example(), loss="cross_entropy", optimizer=AdamW(lr=1e-2), out=tmp_path / "b")
    example = {name: array.numpy() for name, array in BERT.example().items()}
    with Trainer.open(tmp_path / "b") as trainer:
        for inputs, labels in BERT.batches(3):
            trainer.step(to_numpy(inputs, labels))
        predicted = trainer.predict(example)["logits"]
        trainer.save_update(tmp_path / "u.safetensors")
    out = edgepeft.merge(tmp_path / "b", tmp_path / "u.safetensors", to="onnx", out=tmp_path / "m.onnx")
    arrays = [onnx.numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer]
    masked = [a for a in arrays if a.ndim == 2 and np.mean(a == 0) == 0.5]
    assert len(masked) >= len(report.masked) - 1
    logits = onnxruntime.InferenceSession(out).run(["logits"], example)[0]
    assert np.abs(logits - predicted).max() < 1e-4


def test_a_codebook_keeps_zeros_and_values_it_has_room_for() -> None:
    """Zeros stay exact, and a tensor of few values is stored without loss."""
    draw = np.random.default_rng(0)
    weight = draw.normal(size=(40, 30)).astype(np.float32) * (draw.random((40, 30)) < 0.5)
    indices, values = codebook(weight, 16)
    assert indices.dtype == np.uint8 and len(values) <= 16
    assert (values[indices][weight == 0] == 0).all()
    exact = draw.choice(np.array([-1.5, 0, 2, 7], np.float32), (5, 6))
    indices, values = codebook(exact, 4)
    assert np.array_equal(values[indices], exact)
    assert np.array_equal(codebook(np.zeros(3, np.float32), 2)[1], [0])


@pytest.mark.parametrize("size", [0, 1, 257])
def test_a_codebook_needs_a_size_that_uint8_can_index(size: int) -> None:
    """Sizes out of range are refused."""
    with pytest.raises(BadSetting):
        Quantization(codebook=size)


def test_a_codebook_bundle_is_smaller_and_trains_as_torch(tmp_path: Path) -> None:
    """With codebooks a bundle has less than half the bytes. Its losses are those of the clustered model in torch."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    clustered = copy.deepcopy(plain)
    with torch.no_grad():
        for layer in (clustered[0], clustered[2]):
            indices, values = codebook(layer.weight.numpy(), 16)
            layer.weight.copy_(torch.from_numpy(values[indices]))
    example, train = torch.zeros(2, 64), Freeze(train=("4", "0.bias"))
    sgd = SGD(lr=0.1)
    large = edgepeft.prepare(copy.deepcopy(plain), example, method=train, optimizer=sgd, out=tmp_path / "large")
    small = edgepeft.prepare(
        plain, example, method=train, optimizer=sgd, compute=Quantization(codebook=16), out=tmp_path / "small"
    )
    sizes = [(done.bundle / "weights.bin").stat().st_size for done in (large, small)]
    assert sizes[1] < sizes[0] / 2
    assert {name: item.kind for name, item in small.quantized.items()} == {
        "0.weight.indices": "codebook",
        "2.weight.indices": "codebook",
    }
    x, labels = torch.randn(6, 64), torch.tensor([0, 1, 2, 3, 0, 1])
    optimizer = torch.optim.SGD(attach(train, clustered).parameters(), lr=0.1)
    with Trainer.open(small.bundle) as trainer:
        for _ in range(5):
            expected = nn.functional.cross_entropy(clustered(x), labels)
            optimizer.zero_grad()
            expected.backward()
            optimizer.step()
            loss = trainer.step({"input": x.numpy(), "labels": labels.numpy()})
            assert loss == pytest.approx(expected.item(), rel=1e-4)
