"""Recurrent networks train on the device as in torch, with any trained parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import edgepeft
from edgepeft import over_lengths
from edgepeft.methods import BitFit, Full, Head, Lora, Method, attach
from edgepeft.methods.support.recurrent import LoraRecurrent, attach_recurrent, recurrent_modules
from edgepeft_export.forward import from_torch
from edgepeft_export.optimizers import SGD
from edgepeft_runtime import Trainer
from edgepeft_runtime.files.tensorfile import read_tensors
from tests.support.networks import Batch, Network, to_numpy
from tests.support.training import check_merged, torch_losses, train_both
from tests.zoo.recurrent import NETWORKS

METHODS: dict[str, Method] = {"bitfit": BitFit(), "head": Head(), "full": Full()}


def _lora(network: Network) -> Lora:
    return Lora(rank=2, target_modules=network.lora)


@pytest.mark.parametrize("method", ["lora", *METHODS])
@pytest.mark.parametrize("name", NETWORKS)
def test_device_trains_what_torch_trains(name: str, method: str, tmp_path: Path) -> None:
    """Losses of every step, and the outputs of the merged model, over rows of any length."""
    network = NETWORKS[name]
    model = attach(_lora(network) if method == "lora" else METHODS[method], network.model())
    trained = train_both(model, network, tmp_path)
    check_merged(trained, network, tmp_path)
    operators = _operators(trained.bundle / "train.onnx")
    assert operators["LSTM"] + operators["GRU"] == (1 if name == "cnn_gru" else 2)
    assert bool(operators["Scan"]) == (method != "head")


def _operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_full_trains_every_weight_of_a_recurrent_network(tmp_path: Path) -> None:
    """All layers and directions, weights and biases, have changed on the device."""
    network = NETWORKS["lstm"]
    first = network.model().state_dict()
    trained = train_both(attach(Full(), network.model()), network, tmp_path)
    update = read_tensors(trained.update).tensors
    for name, weight in first.items():
        assert (update[name] != weight.numpy()).any(), name
    assert sum(name.startswith("rnn.") for name in first) == 16


def test_the_number_of_frames_may_be_free(tmp_path: Path) -> None:
    """A speech model prepared with free frames trains on recordings of any length, as torch does."""
    network = replace(NETWORKS["cnn_gru"], batches=_recordings)
    model = attach(_lora(network), network.model())
    axes = {"features": {0: "batch", 1: "frames"}, "lengths": {0: "batch"}}
    optimizer = SGD(lr=0.05, momentum=0.9)
    prepared = edgepeft.prepare(
        model,
        network.example(),
        interface=edgepeft.Interface(axes),
        loss="cross_entropy",
        optimizer=optimizer,
        out=tmp_path / "bundle",
    )
    with Trainer.open(prepared.bundle) as trainer:
        losses = [trainer.step(to_numpy(inputs, labels)) for inputs, labels in _recordings(4)]
    assert losses == pytest.approx(list(torch_losses(model, network, 4, 0.05)), rel=1e-4)


def _recordings(count: int) -> Iterator[tuple[Batch, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    for rows, frames in [(1, 3), (4, 17), (2, 1), (3, 8)][:count]:
        lengths = torch.randint(1, frames + 1, (rows,), generator=draw)
        features = torch.randn(rows, frames, 12, generator=draw)
        yield {"features": features, "lengths": lengths}, torch.randint(0, 4, (rows,), generator=draw)


# LoRA


def test_recurrent_lora_has_a_pair_per_weight_matrix() -> None:
    """Of every layer and direction, with the head of a classifier, without a model of peft."""
    model = attach(Lora(rank=3, target_modules=("rnn",)), NETWORKS["lstm"].model())
    marked = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    assert type(model).__name__ == "LstmClassifier"
    assert marked["rnn.lora_A.weight_ih_l0"] == (3, 10)
    assert marked["rnn.lora_B.weight_ih_l0"] == (32, 3)
    assert marked["rnn.lora_A.weight_hh_l1_reverse"] == (3, 8)
    assert len(marked) == 2 * 8 + 2


def test_lora_adapts_recurrent_layers_by_default() -> None:
    """Of a model that peft does not know, all that can be adapted is: here convolution, GRU and projection."""
    model = attach(Lora(rank=2), NETWORKS["cnn_gru"].model())
    adapted = {name for name, p in model.named_parameters() if p.requires_grad and "lora_A" in name}
    assert {part for name in adapted for part in ("conv", "gru", "project") if f".{part}." in name} == {
        "conv",
        "gru",
        "project",
    }
    assert all(".gru." not in name for name in _adapted(Lora(target_modules=("project",))))


def _adapted(method: Lora) -> set[str]:
    model = attach(method, NETWORKS["cnn_gru"].model())
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_attached_pairs_change_nothing_at_first() -> None:
    """Outputs are those of the network before the first step, and no pair is attached twice."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.GRU(5, 4, bidirectional=True))
    x = torch.randn(6, 2, 5)
    expected, _ = model(x)
    assert recurrent_modules(model) == ["0"]
    attach_recurrent(model, ["0"], 2, 4.0)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"0.lora_{side}.weight_{kind}_l0{direction}"
        for side in "AB"
        for kind in ("ih", "hh")
        for direction in ("", "_reverse")
    }
    found, _ = model(x)
    torch.testing.assert_close(found, expected)
    assert recurrent_modules(model) == []


def test_pairs_change_the_network_as_weights_of_that_sum_would() -> None:
    """W + alpha / rank · B A in every matrix; the network's attributes stay readable."""
    torch.manual_seed(0)
    plain = nn.LSTM(5, 4, num_layers=2, batch_first=True)
    adapted = LoraRecurrent(plain, 2, 6.0)
    for matrix in adapted.lora_B.values():
        nn.init.normal_(matrix)
    x = torch.randn(2, 7, 5)
    found, (last, _) = adapted(x)
    changed = nn.LSTM(5, 4, num_layers=2, batch_first=True)
    deltas = {name: 3.0 * adapted.lora_B[name] @ adapted.lora_A[name] for name in adapted.lora_A}
    state = {name: w + deltas[name] if name in deltas else w for name, w in plain.state_dict().items()}
    changed.load_state_dict(state)
    expected, (expected_last, _) = changed(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(last, expected_last)
    assert adapted.batch_first and adapted.hidden_size == 4


# Rows of their own lengths


class _BothEnds(nn.Module):
    """The last states of a bidirectional GRU over rows of their own lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return over_lengths(self.gru, x, lengths)[1].transpose(0, 1).flatten(1)


def test_over_lengths_is_what_packing_is() -> None:
    """In torch a row has the outputs of that row alone, unpadded. In a graph the lengths are an operator's input."""
    torch.manual_seed(0)
    model = _BothEnds()
    x, lengths = torch.randn(5, 3, 3), torch.tensor([2, 5, 3])
    together = model(x, lengths)
    for row, length in enumerate(lengths):
        last = model.gru(x[:length, row : row + 1])[1]
        torch.testing.assert_close(together[row], last[:, 0].flatten())
    axes = {"x": {0: "steps", 1: "batch"}, "lengths": {0: "batch"}}
    graph = from_torch(model, {"x": x, "lengths": lengths}, dynamic_axes=axes).model.graph
    (node,) = [node for node in graph if node.op_type == "GRU"]
    assert node.inputs[4] is not None
