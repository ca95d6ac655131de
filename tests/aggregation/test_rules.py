"""Each rule on pairs, sparse tensors and all other tensors, against numpy and against the model itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import edgepeft
from edgepeft.aggregation import aggregate
from edgepeft.aggregation.errors import AggregationError
from edgepeft.aggregation.pairs import PairTensors, pairs_of
from edgepeft.aggregation.products import ProductSum
from edgepeft.methods import FrozenA, Lora
from edgepeft.methods.lora import RsLora
from edgepeft_export.optimizers import SGD
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.files.tensorfile import write_tensors
from tests.support.bundles import Trained
from tests.support.networks import NETWORKS, to_numpy
from tests.support.onnx_networks import write as write_onnx
from tests.support.simulated_devices import Tensors, drifted, send
from tests.zoo.recurrent import NETWORKS as RECURRENT

BERT = NETWORKS["bert"]


def _products(tensors: Tensors, pair: PairTensors) -> np.ndarray:
    b, a = pair.factors(tensors)
    return b @ a


def _norm(arrays: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(array).sum() for array in arrays)))


# LoRA pairs


@pytest.mark.parametrize("drift", [0.1, 0.01, 0.001])
def test_fedavg_reports_what_it_loses(text: Trained, drift: float, tmp_path: Path) -> None:
    """The reported error is the distance of the merged products from the mean product; it falls with the drift."""
    bundle = Bundle.open(text.bundle)
    first = write_tensors_of(drifted(bundle, 1, 0.5)[0], tmp_path / "start.safetensors")
    fleet = drifted(bundle, 6, drift, 1, first)
    found = aggregate(bundle, send(bundle, fleet, tmp_path, first), adapter=first)
    start = Trainer.open(bundle, adapter=first).parameters()
    lost, change = [], []
    for pair in pairs_of(bundle.manifest):
        exact = np.mean([_products(own, pair) for own in fleet], axis=0)
        lost.append(_products(found.parameters, pair) - exact)
        change.append(exact - _products(start, pair))
        assert found.report.merge_error is not None
        assert found.report.merge_error.pairs[pair.layer] == pytest.approx(
            _norm(lost[-1:]) / _norm(change[-1:]), rel=1e-2
        )
    assert found.report.merge_error is not None
    assert found.report.merge_error.relative == pytest.approx(_norm(lost) / _norm(change), rel=1e-2)
    assert found.report.merge_error.relative < 1.5 * drift


def write_tensors_of(tensors: Tensors, path: Path) -> Path:
    write_tensors(path, tensors)
    return path


def test_equal_devices_lose_nothing(text: Trained, tmp_path: Path) -> None:
    """The same tensors in two files (their steps differ): every rule returns them, and reports no error."""
    bundle = Bundle.open(text.bundle)
    (own,) = drifted(bundle, 1, 0.3)
    paths = send(bundle, [own, own], tmp_path, examples=[1, 2])
    for rule in ("fedavg", "svd", "stack"):
        found = aggregate(bundle, paths, rule=rule)
        assert len(found.report.updates) == 2
        assert found.report.merge_error is not None and found.report.merge_error.relative < 1e-12
        for pair in pairs_of(bundle.manifest):
            assert np.allclose(_products(found.parameters, pair), _products(own, pair), atol=1e-6)


def test_svd_is_the_nearest_of_its_rank(text: Trained, tmp_path: Path) -> None:
    """Its error is the tail of the singular values, less than fedavg's, whether stacked or summed."""
    bundle = Bundle.open(text.bundle)
    for count in (3, 20):  # 12 and 80 of 32 dimensions
        fleet = drifted(bundle, count, 0.3, count)
        paths = send(bundle, fleet, tmp_path / str(count))
        found, plain = (aggregate(bundle, paths, rule=rule) for rule in ("svd", "fedavg"))
        for pair in pairs_of(bundle.manifest):
            exact = np.mean([_products(own, pair) for own in fleet], axis=0)[0]
            tail = np.linalg.svd(exact, compute_uv=False)[pair.rank :]
            off = np.linalg.norm(_products(found.parameters, pair)[0] - exact)
            assert off == pytest.approx(np.linalg.norm(tail), rel=1e-4)
            assert found.report.merge_error is not None and plain.report.merge_error is not None
            change = np.linalg.norm(exact - _products(bundle.adapter(), pair)[0])
            assert found.report.merge_error.pairs[pair.layer] == pytest.approx(off / change, rel=1e-4)
            assert off <= np.linalg.norm(_products(plain.parameters, pair)[0] - exact)


def test_devices_of_the_method_ffa_meet_exactly(tmp_path: Path) -> None:
    """Trained devices of ffa have bit-identical A, so the mean has the mean of their products under both rules."""
    torch.manual_seed(0)
    prepared = edgepeft.prepare(
        BERT.model(), BERT.example(), loss=BERT.loss, method=FrozenA(rank=2), optimizer=SGD(lr=0.5), out=tmp_path / "b"
    )
    bundle = Bundle.open(prepared.bundle)
    non_trainable = set(bundle.manifest.adapter.non_trainable)
    assert non_trainable == {spec.name for spec in bundle.manifest.parameters if spec.role == "lora_A"}
    assert prepared.trainable == sum(spec.size for spec in bundle.manifest.parameters if spec.name not in non_trainable)
    fleet: list[Tensors] = []
    for inputs, labels in BERT.batches(3):
        with Trainer.open(bundle) as trainer:
            trainer.step(to_numpy(inputs, labels))
            fleet.append(trainer.parameters())
    updates = send(bundle, fleet, tmp_path)
    for rule in ("ffa", "fedavg"):
        found = aggregate(bundle, updates, rule=rule)
        assert found.report.merge_error is not None and found.report.merge_error.relative == 0
        for pair in pairs_of(bundle.manifest):
            assert any(not np.array_equal(own[pair.b], fleet[0][pair.b]) for own in fleet[1:])
            exact = np.mean([_products(own, pair) for own in fleet], axis=0)
            assert np.allclose(_products(found.parameters, pair), exact, atol=1e-7)
    name = sorted(non_trainable)[0]
    changed = send(bundle, [{**fleet[0], name: fleet[0][name] + 1}], tmp_path / "changed")
    with pytest.raises(AggregationError, match="non-trainable-changed"):
        aggregate(bundle, changed)


def test_a_product_sum_stays_small_and_exact() -> None:
    """Products past the size of the sum are added up; norm and best rank do not depend on when."""
    draw = np.random.default_rng(0)
    terms = [(draw.normal(size=(2, 9, 3)), draw.normal(size=(2, 3, 7))) for _ in range(20)]
    found, exact = ProductSum(), np.zeros((2, 9, 7))
    for b, a in terms:
        found.add(b, a)
        exact += b @ a
        assert sum(factor.size for pair in found._factors for factor in pair) <= 2 * 7 * (9 + 7)
        assert np.allclose(found.dense(), exact, atol=1e-12)
        assert found.norm() == pytest.approx(np.linalg.norm(exact), rel=1e-12)
        u, s, v = found.best(2)
        assert np.allclose((u * s[:, None, :2]) @ v, _truncated(exact, 2), atol=1e-10)


def _truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[..., :rank] * s[:, None, :rank]) @ v[:, :rank]


def test_ffa_wants_a_as_it_was(text: Trained, tmp_path: Path) -> None:
    """With A untouched the mean of B is the mean of the products; a device that has changed A does not count."""
    bundle = Bundle.open(text.bundle)
    start, fleet = bundle.adapter(), drifted(bundle, 4, 0.3)
    halves = {pair.a for pair in bundle.manifest.adapter.pairs}
    frozen = [{name: start[name] if name in halves else own[name] for name in own} for own in fleet]
    for how in ({}, {"robust": "median"}):
        found = aggregate(bundle, send(bundle, frozen, tmp_path / "frozen"), rule="ffa", **how)
        assert all(np.array_equal(found.parameters[n], start[n]) for n in halves)
        mixed = aggregate(bundle, send(bundle, [*frozen, fleet[0]], tmp_path / "mixed"), rule="ffa", **how)
        assert [refused.code for refused in mixed.report.refused] == ["non-trainable-changed"]
        assert all(mixed.parameters[name].tobytes() == array.tobytes() for name, array in found.parameters.items())
    with pytest.raises(AggregationError, match=r"non-trainable-changed.*lora_A"):
        aggregate(bundle, send(bundle, fleet, tmp_path / "free"), rule="ffa")
    found = aggregate(bundle, send(bundle, frozen, tmp_path / "frozen"), rule="ffa")
    assert found.report.merge_error is not None and found.report.merge_error.relative == 0
    for pair in pairs_of(bundle.manifest):
        exact = np.mean([_products(own, pair) for own in frozen], axis=0)
        assert np.allclose(_products(found.parameters, pair), exact, atol=1e-6)


def _linear(method: Lora, folder: Path) -> Bundle:
    """A linear layer, so that outputs are linear in the product of the pair."""
    torch.manual_seed(0)
    model, name = nn.Sequential(nn.Linear(6, 10)), f"{method.name}-{method.rank}-{method.alpha}"
    return Bundle.open(edgepeft.prepare(model, torch.zeros(2, 6), method=method, loss="mse", out=folder / name).bundle)


X = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)


def _outputs(bundle: Bundle, tensors: Tensors) -> np.ndarray:
    with Trainer.open(bundle, adapter=tensors) as trainer:
        return trainer.predict({"input": X})["output"].astype(np.float64)


def test_ranks_and_scales_may_be_mixed(tmp_path: Path) -> None:
    """Ranks 2, 3 and 4 with scales 2, 1 and, by rsLoRA, 3 / 2: the devices' outputs average, whatever the target."""
    bundles = [_linear(m, tmp_path) for m in (Lora(2, 4, ("0",)), Lora(3, 3, ("0",)), RsLora(4, 3, ("0",)))]
    fleet = [drifted(bundle, 1, 0.1, seed)[0] for seed, bundle in enumerate(bundles)]
    paths = [send(b, [own], tmp_path / f"u{i}")[0] for i, (b, own) in enumerate(zip(bundles, fleet, strict=True))]
    exact = np.mean([_outputs(bundle, own) for bundle, own in zip(bundles, fleet, strict=True)], axis=0)
    for target in bundles:
        others = [(bundle, None) for bundle in bundles if bundle is not target]
        stack = aggregate(target, paths, others=others, rule="stack")
        assert len(stack.report.updates) == 3
        file = stack.save(tmp_path / "stack.safetensors")
        merged = edgepeft.merge(target, file, to="onnx", out=tmp_path / "m.onnx", overwrite=True)
        (found,) = onnxruntime.InferenceSession(merged).run(None, {"input": X})
        assert np.abs(found - exact).max() < 1e-5
        best = aggregate(target, paths, others=others, rule="svd")
        base = _outputs(target, target.adapter())
        assert best.report.merge_error is not None
        off = np.linalg.norm(_outputs(target, best.parameters) - exact) / np.linalg.norm(exact - base)
        assert off < 3 * best.report.merge_error.relative + 1e-5  # the inputs are not the same in all directions
    alone = aggregate(bundles[2], paths[:1], others=[(bundles[0], None)], rule="svd")
    assert np.abs(_outputs(bundles[2], alone.parameters) - _outputs(bundles[0], fleet[0])).max() < 1e-5


def test_another_model_is_no_other_rank(text: Trained, tmp_path: Path) -> None:
    """Bundles of other weights cannot be mixed."""
    one, other = _linear(Lora(2, 4, ("0",)), tmp_path), Bundle.open(text.bundle)
    with pytest.raises(AggregationError) as caught:
        aggregate(one, [text.update], others=[(other, None)], rule="svd")
    assert caught.value.code == "other-model"


# Layouts


def _convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2, padding=1), nn.Conv2d(8, 6, 3, dilation=2, padding=2), nn.Conv2d(6, 4, 1)
    )


def test_pairs_are_found_whatever_they_adapt(text: Trained, images: Trained, layouts: dict[str, Bundle]) -> None:
    """Linear, convolutions with and without groups, embeddings, recurrent layers, and products on a graph."""
    found = {name: pairs_of(bundle.manifest) for name, bundle in layouts.items()}
    for trained in (text, images):
        assert all(pair.scale in (2.0, 3.0) for pair in pairs_of(Bundle.open(trained.bundle).manifest))
    assert [(pair.layer, pair.rank) for pair in pairs_of(Bundle.open(images.bundle).manifest)] == [
        ("base_model.model.first", 2),
        ("base_model.model.second", 2),
        ("base_model.model.last", 2),
    ]
    kinds = {
        name: {(pair.groups, pair.rank, pair.layout, pair.scale) for pair in bundle.manifest.adapter.pairs}
        for name, bundle in layouts.items()
    }
    assert kinds == {
        "convolutions": {(2, 2, "torch", 2.0), (1, 2, "torch", 2.0)},
        "recurrent": {(1, 2, "torch", 2.0)},
        "embedding": {(1, 2, "torch", 4.0)},
        "graph": {(1, 3, "torch", 2.0), (1, 3, "graph", 2.0)},
    }
    assert [pair.layer for pair in found["embedding"]] == ["base_model.model.0", "base_model.model.1"]
    assert len({pair.layer for pair in found["recurrent"]}) == len(found["recurrent"]) == 8


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A bundle for every way in which pairs are laid out."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("layouts")
    lstm = RECURRENT["lstm"]
    embedding = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 3))
    config = LoraConfig(r=2, target_modules=["0", "1"], alpha_pattern={"0": 8, "1": 8})
    made = {
        "convolutions": edgepeft.prepare(
            _convolutions(), torch.zeros(2, 4, 6, 6), method=Lora(rank=2), loss="mse", out=folder / "c"
        ).bundle,
        "recurrent": edgepeft.prepare(
            lstm.model(),
            lstm.example(),
            method=Lora(rank=2, target_modules=lstm.lora),
            loss=lstm.loss,
            out=folder / "r",
        ).bundle,
        "embedding": edgepeft.prepare(
            get_peft_model(embedding, config), torch.zeros(2, 5, dtype=torch.int64), loss="mse", out=folder / "e"
        ).bundle,
        "graph": edgepeft.prepare(write_onnx(folder / "m.onnx"), method=Lora(rank=3), out=folder / "g").bundle,
    }
    return {name: Bundle.open(path) for name, path in made.items()}


def test_a_stack_of_any_layout_is_the_mean_on_the_model(layouts: dict[str, Bundle], tmp_path: Path) -> None:
    """Grouped and dilated convolutions: the merged stack is the mean of the devices' linear networks."""
    bundle = layouts["convolutions"]
    draw = np.random.default_rng(0)
    inputs = {"input": draw.normal(size=(2, 4, 6, 6)).astype(np.float32)}
    first = [pair for pair in pairs_of(bundle.manifest) if pair.groups == 2]
    start = bundle.adapter()
    fleet = [  # one layer of three changes, so the network stays linear in what is averaged
        {name: own[name] if name in (first[0].a, first[0].b) else start[name] for name in own}
        for own in drifted(bundle, 3, 0.3)
    ]
    stack = aggregate(bundle, send(bundle, fleet, tmp_path / "u"), rule="stack").save(tmp_path / "stack.safetensors")
    merged = edgepeft.merge(bundle, stack, to="onnx", out=tmp_path / "m.onnx")
    outputs = []
    for own in fleet:
        with Trainer.open(bundle, adapter=own) as trainer:
            outputs.append(next(iter(trainer.predict(inputs).values())))
    (found,) = onnxruntime.InferenceSession(merged).run(None, inputs)
    assert np.abs(found - np.mean(outputs, axis=0)).max() < 1e-5
