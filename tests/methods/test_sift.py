"""SIFT: the device selects the elements that torch selects, has torch's losses, and sends only values and indices."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
import torch
from torch import nn

import edgepeft
from benchmarks.accuracy.plan import cut
from benchmarks.accuracy.tasks import TASKS
from edgepeft.merging.errors import MergeError
from edgepeft.methods import Sift, attach
from edgepeft_export.optimizers import AdamW
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import BundleError, SettingError, UpdateError, WrongIndices
from edgepeft_runtime.files.tensorfile import read_tensors, write_tensors
from edgepeft_runtime.train.selection import largest
from edgepeft_runtime.train.update import Update, check_update, read_update, write_update
from tests.support.networks import NETWORKS, Network, to_numpy, torch_loss

BERT, CNN, GPT2, LLAMA = (NETWORKS[name] for name in ("bert", "cnn", "gpt2", "llama"))
STEPS = 20


class Oracle:
    """The method in torch: whole weights, whose gradients are set to zero outside the indices picked first."""

    def __init__(self, network: Network, method: Sift, seen: int = 1) -> None:
        self.network = network
        self.model = attach(method, network.model()).eval()
        chosen = [name for name, p in self.model.named_parameters() if p.requires_grad and p.ndim > 1]
        self.weights = {name: self.model.get_parameter(name) for name in chosen if not name.startswith("classifier")}
        sizes = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        for inputs, labels in list(network.batches(seen)):
            self._backward(inputs, labels)
            for name, weight in self.weights.items():
                sizes[name] += weight.grad.abs() * len(labels)  # the device adds up gradients of sums
        self.indices = {}
        for name, weight in self.weights.items():
            count = int(method.rate * weight.numel()) + 1
            self.indices[name] = sizes[name].flatten().topk(count).indices.sort().values

    def _backward(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> float:
        self.model.zero_grad()
        loss = torch_loss(self.model, inputs, labels, self.network.loss)
        loss.backward()
        return loss.item()

    def losses(self, steps: int, lr: float) -> list[float]:
        """Of AdamW without decay, whose moments are zero outside the indices."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        decayed = [p for n, p in self.model.named_parameters() if n == "classifier.weight"]
        rest = [p for p in trained if not any(p is other for other in decayed)]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=lr)
        losses = []
        for inputs, labels in self.network.batches(steps):
            losses.append(self._backward(inputs, labels))
            for name, weight in self.weights.items():
                mask = torch.zeros(weight.numel(), dtype=torch.bool)
                mask[self.indices[name]] = True
                weight.grad *= mask.view_as(weight)
            optimizer.step()
        return losses


def _prepared(network: Network, method: Sift, folder: Path, **settings: object) -> Path:
    return edgepeft.prepare(
        network.model(),
        network.example(),
        method=method,
        loss=network.loss,
        optimizer=AdamW(lr=2e-3),
        out=folder / "bundle",
        **settings,  # type: ignore[arg-type]
    ).bundle


def _trained(bundle: Path, network: Network, folder: Path, steps: int = STEPS) -> tuple[Path, list[float]]:
    with Trainer.open(bundle) as trainer:
        losses = [trainer.step(to_numpy(*batch)) for batch in network.batches(steps)]
        return trainer.save_update(folder / "update.safetensors"), losses


def _falls(bundle: Path) -> bool:
    """Whether ten steps on one batch of BERT's lower its loss."""
    with Trainer.open(bundle) as trainer:
        batch = to_numpy(*next(BERT.batches(1)))
        losses = [trainer.step(batch) for _ in range(10)]
    return losses[-1] < 0.98 * losses[0]


@pytest.mark.parametrize(
    "network",
    [BERT, CNN, pytest.param(GPT2, marks=pytest.mark.slow), pytest.param(LLAMA, marks=pytest.mark.slow)],
    ids=["bert", "cnn", "gpt2", "llama"],
)
def test_the_device_picks_and_trains_what_torch_does(network: Network, tmp_path: Path) -> None:
    """The same indices after the first batch, and the same losses for 20 steps."""
    method = Sift(rate=0.02)
    bundle = _prepared(network, method, tmp_path)
    oracle = Oracle(network, method)
    update, losses = _trained(bundle, network, tmp_path)
    tensors = read_tensors(update).tensors
    for name, indices in oracle.indices.items():
        assert np.array_equal(tensors[f"{name}.indices"], indices.numpy()), name
    assert losses == pytest.approx(oracle.losses(STEPS, 2e-3), rel=1e-4)


@pytest.mark.slow
def test_minilm_picks_and_trains_on_docstrings_what_torch_does(tmp_path: Path) -> None:
    """1 % of 10.7 M weights: torch's indices but for equal gradients, its losses for 20 steps, 1.36 % of the bytes."""
    data, _ = TASKS["docstrings"].data(16 * STEPS, 0)
    batches = [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in cut(data, 16)]
    network = replace(
        NETWORKS["minilm"], batches=lambda count: (_without_labels(batch) for batch in islice(batches, count))
    )
    method = Sift(rate=0.01)
    bundle = _prepared(network, method, tmp_path)
    oracle = Oracle(network, method)
    update, losses = _trained(bundle, network, tmp_path)
    tensors = read_tensors(update).tensors
    picked = {name: set(tensors[f"{name}.indices"].tolist()) for name in oracle.indices}
    wanted = {name: set(indices.tolist()) for name, indices in oracle.indices.items()}
    count = sum(map(len, wanted.values()))
    assert 105_000 < count < 110_000
    assert sum(len(wanted[name] - picked[name]) for name in wanted) <= 1e-4 * count
    assert losses == pytest.approx(oracle.losses(STEPS, 2e-3), rel=1e-4)
    chosen = 4 * sum(spec.size for spec in Bundle.open(bundle).manifest.sparse)
    write_tensors(tmp_path / "plain", tensors, read_tensors(update).metadata, digest=True)
    assert update.stat().st_size / chosen == pytest.approx(0.0136, abs=0.0001)
    assert (tmp_path / "plain").stat().st_size / chosen == pytest.approx(0.0206, abs=0.0001)


def _without_labels(batch: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}, batch["labels"]


def test_an_update_merges_into_torch_onnx_and_peft(tmp_path: Path) -> None:
    """Whole tensors for torch, a plain model without scatter, and a SHiRA adapter: all give torch's logits."""
    bundle = _prepared(BERT, Sift(rate=0.02), tmp_path)
    update, _ = _trained(bundle, BERT, tmp_path)
    oracle = Oracle(BERT, Sift(rate=0.02))
    oracle.losses(STEPS, 2e-3)
    inputs, labels = next(BERT.batches(1))
    expected = oracle.model(**inputs).logits.detach()
    state = torch.load(edgepeft.merge(bundle, update, to="torch", out=tmp_path / "state.pt"))
    fresh = BERT.model().eval()
    assert not fresh.load_state_dict(state, strict=False).unexpected_keys
    assert torch.allclose(fresh(**inputs).logits, expected, atol=1e-4)
    merged = edgepeft.merge(bundle, update, to="onnx", out=tmp_path / "merged.onnx")
    assert not [node for node in onnx.load(merged).graph.node if node.op_type == "ScatterND"]
    arrays = {name: array for name, array in to_numpy(inputs, labels).items() if name != "labels"}
    assert np.abs(onnxruntime.InferenceSession(merged).run(None, arrays)[0] - expected.numpy()).max() < 1e-4
    from peft import PeftModel

    adapter = edgepeft.merge(bundle, update, to="peft", out=tmp_path / "adapter")
    assert json.loads((adapter / "adapter_config.json").read_text("utf-8"))["peft_type"] == "SHIRA"
    loaded = PeftModel.from_pretrained(BERT.model(), adapter).eval()
    assert torch.allclose(loaded(**inputs).logits, expected, atol=1e-4)


def test_what_shira_cannot_hold_is_refused(tmp_path: Path) -> None:
    """Kernels of convolutions are not weights of linear layers."""
    bundle = _prepared(CNN, Sift(rate=0.1), tmp_path)
    update, _ = _trained(bundle, CNN, tmp_path, steps=1)
    with pytest.raises(MergeError, match="SHiRA"):
        edgepeft.merge(bundle, update, to="peft", out=tmp_path / "adapter")


def test_an_update_contains_the_fraction_that_trains(tmp_path: Path) -> None:
    """Four bytes per value and little more than one per index, of 2 % of the elements."""
    bundle = _prepared(BERT, Sift(rate=0.02, head=()), tmp_path)
    update, _ = _trained(bundle, BERT, tmp_path, steps=1)
    weights = sum(p.numel() for p in attach(Sift(head=()), BERT.model()).parameters() if p.requires_grad)
    stored = safetensors.numpy.load_file(update)
    assert {array.dtype.name for array in stored.values()} == {"float32", "uint8"}
    assert 4 < sum(array.nbytes for array in stored.values()) / (0.02 * weights) < 5.5


def test_gradients_of_several_batches_are_added_up(tmp_path: Path) -> None:
    """``accumulated`` picks by the first three batches of ``fit``, though it trains on the first one first."""
    bundle = _prepared(CNN, Sift(rate=0.1, mask="accumulated", batches=3), tmp_path)
    oracle = Oracle(CNN, Sift(rate=0.1), seen=3)
    batches = [to_numpy(*batch) for batch in CNN.batches(4)]
    with Trainer.open(bundle) as trainer:
        trainer.fit(batches, epochs=1)
        tensors = trainer.parameters()
    assert all(np.array_equal(tensors[f"{name}.indices"], indices.numpy()) for name, indices in oracle.indices.items())


@pytest.mark.parametrize("mask", ["random", "magnitude"])
def test_indices_may_be_known_from_the_start(mask: str, tmp_path: Path) -> None:
    """Then there is no selection graph, and the largest weights are the largest."""
    bundle = _prepared(BERT, Sift(rate=0.02, mask=mask), tmp_path)
    assert not (bundle / "select.onnx").exists()
    tensors = read_tensors(bundle / "adapter.safetensors").tensors
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    indices, weight = tensors[f"{name}.indices"], BERT.model().get_parameter(name).detach().numpy().reshape(-1)
    assert (np.diff(indices) > 0).all()
    if mask == "magnitude":
        assert np.abs(weight[indices]).min() >= np.sort(np.abs(weight))[-len(indices)]
    assert _falls(bundle)


def test_the_workstation_can_pick_for_all_devices(tmp_path: Path) -> None:
    """After ``edgepeft.pick`` the indices are part of the bundle, and an update of the old adapter is stale."""
    bundle = _prepared(BERT, Sift(rate=0.02), tmp_path)
    old, _ = _trained(bundle, BERT, tmp_path, steps=1)
    oracle = Oracle(BERT, Sift(rate=0.02))
    edgepeft.pick(bundle, [to_numpy(*batch) for batch in BERT.batches(1)])
    assert not (bundle / "select.onnx").exists()
    tensors = read_tensors(bundle / "adapter.safetensors").tensors
    assert all(np.array_equal(tensors[f"{name}.indices"], indices.numpy()) for name, indices in oracle.indices.items())
    assert _trained(bundle, BERT, tmp_path / "..", steps=1)[1][0] == pytest.approx(1.597, abs=0.01)
    with pytest.raises(UpdateError, match="another adapter"):
        edgepeft.merge(bundle, old, to="torch", out=tmp_path / "state.pt")
    with pytest.raises(BundleError, match="has no elements to pick"):
        edgepeft.pick(bundle, [])


def test_a_run_resumes_with_the_indices_it_picked(tmp_path: Path) -> None:
    """A stopped run ends like one that was never stopped, though its second half starts with other batches."""
    bundle = _prepared(CNN, Sift(rate=0.1), tmp_path)
    batches = [to_numpy(*batch) for batch in CNN.batches(6)]
    with Trainer.open(bundle) as trainer:
        trainer.fit(batches, epochs=2)
        whole = trainer.parameters()

    def stop(progress: object) -> None:
        if progress.step == 8:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Trainer.open(bundle, state=tmp_path / "state") as trainer:
        trainer.fit(batches, epochs=2, callbacks=[stop])
    with Trainer.open(bundle, state=tmp_path / "state") as trainer:
        assert not trainer.must_pick
        trainer.fit(batches, epochs=2)
        assert all(np.array_equal(array, whole[name]) for name, array in trainer.parameters().items())


@pytest.mark.parametrize("fault", ["outside", "descending", "half"])
def test_indices_that_make_no_sense_are_refused(fault: str, tmp_path: Path) -> None:
    """Outside the tensor, out of order, or picked in part: in an update, and in an adapter to start from."""
    bundle = _prepared(CNN, Sift(rate=0.1), tmp_path)
    update = read_update(_trained(bundle, CNN, tmp_path, steps=1)[0])
    indices = update.parameters["pointwise.weight.indices"].copy()
    indices[-1] = {"outside": 64, "descending": indices[0], "half": -1}[fault]
    parameters = {**update.parameters, "pointwise.weight.indices": indices}
    bad = write_update(tmp_path / "bad.safetensors", Update(**{**vars(update), "parameters": parameters}))
    with pytest.raises(WrongIndices, match="ascending positions"):
        check_update(read_update(bad), Bundle.open(bundle))
    with pytest.raises(WrongIndices, match="ascending positions"):
        Trainer.open(bundle, adapter=parameters)


def test_sparse_elements_train_with_a_quantized_base(tmp_path: Path) -> None:
    """With int8, weights with trained elements stay float, and all others are quantized."""
    method = Sift(rate=0.05, weights=("*.query.weight", "*.value.weight"))
    done = edgepeft.prepare(
        BERT.model(),
        BERT.example(),
        method=method,
        loss=BERT.loss,
        compute=edgepeft.Quantization("int8", smallest=512),
        out=tmp_path / "bundle",
    )
    assert done.quantized and not [name for name in done.quantized if "query" in name or "value" in name]
    assert _falls(done.bundle)


def test_elements_of_an_onnx_file_train(tmp_path: Path) -> None:
    """The initializers named by ``trainable`` are sifted."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    torch.onnx.export(
        model, args=(torch.zeros(2, 12),), f=tmp_path / "m.onnx", dynamo=True, input_names=["x"], verbose=False
    )
    names = ["0.weight", "2.weight"]
    bundle = edgepeft.prepare(tmp_path / "m.onnx", method=Sift(rate=0.2), trainable=names, out=tmp_path / "b").bundle
    x, labels = torch.randn(2, 12), torch.tensor([1, 3])
    twin = copy.deepcopy(model)
    nn.functional.cross_entropy(twin(x), labels).backward()
    with Trainer.open(bundle) as trainer:
        trainer.step({"x": x.numpy(), "labels": labels.numpy()})
        tensors = trainer.parameters()
    for name in names:
        gradient = twin.get_parameter(name).grad
        expected = largest(gradient.abs().flatten().numpy(), int(0.2 * gradient.numel()) + 1)
        assert np.array_equal(tensors[f"{name}.indices"], expected)


@pytest.mark.parametrize("settings", [{"rate": 0.0}, {"rate": 1.5}, {"mask": "best"}, {"batches": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    """The error names the valid values."""
    with pytest.raises(SettingError, match="out of range"):
        Sift(**settings)  # type: ignore[arg-type]


def test_the_largest_are_picked_and_the_first_of_equals() -> None:
    """Also where all are equal, and where all are wanted."""
    assert largest(np.array([3, 1, 3, 2, 3], np.float32), 2).tolist() == [0, 2]
    assert largest(np.zeros(4, np.float32), 3).tolist() == [0, 1, 2]
    assert largest(np.array([1, 2], np.float32), 2).tolist() == [0, 1]
