"""Properties of every aggregate: order, repetition, one device, bits, refusals, files."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgepeft
from edgepeft.aggregation import Aggregate, Robust, aggregate, check_acceptance
from edgepeft.aggregation.errors import AggregationError
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.adapter_layout import LowRankPair
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import DataError, EdgepeftError, SettingError
from edgepeft_runtime.files.tensorfile import sha256_of
from edgepeft_runtime.train.update import read_update, write_update
from tests.support.bundles import Trained
from tests.support.onnx_runs import TEXT, first_output
from tests.support.simulated_devices import drifted, send

RULES = ("fedavg", "svd", "stack")
SETTINGS: list[dict[str, object]] = [
    *({"rule": rule} for rule in RULES),
    {"rule": "fedavg", "weights": "examples"},
    {"rule": "svd", "clip": 0.5},
    {"robust": "median"},
    {"robust": "trimmed-mean=0.2", "clip": 0.5},
]
quick = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _bits(found: Aggregate) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in found.parameters.items()}


@pytest.fixture(scope="module")
def fleet(text: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[Path]]:
    """Seven devices of the text bundle."""
    bundle = Bundle.open(text.bundle)
    examples = [10, 20, 30, 40, 50, 60, 70]
    return bundle, send(bundle, drifted(bundle, 7), tmp_path_factory.mktemp("fleet"), examples=examples)


@pytest.mark.parametrize("how", SETTINGS, ids=str)
@quick
@given(data=st.data())
def test_order_and_repetition_change_nothing(
    fleet: tuple[Bundle, list[Path]], how: dict[str, object], data: st.DataObject, tmp_path: Path
) -> None:
    """Updates in any order, any of them twice or under a second name: the same bits, and the same report."""
    bundle, paths = fleet
    order = data.draw(st.permutations(paths))
    again = data.draw(st.lists(st.sampled_from(paths)))
    copies = [Path(shutil.copy(path, tmp_path / f"{number}.safetensors")) for number, path in enumerate(again)]
    once, shuffled = (aggregate(bundle, updates, **how) for updates in (paths, [*order, *again, *copies]))  # type: ignore[arg-type]
    assert _bits(once) == _bits(shuffled)
    assert shuffled.report.duplicates == len(copies)
    assert replace(shuffled.report, duplicates=0) == once.report


@pytest.mark.parametrize("rule", RULES)
@quick
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-12, 6))
def test_one_device_returns_its_own_adapter(text: Trained, rule: str, seed: int, exponent: int, tmp_path: Path) -> None:
    """To the bit; under svd the product of a pair, to float32's rounding, and everything else to the bit."""
    bundle = Bundle.open(text.bundle)
    (own,) = fleet = drifted(bundle, 1, 10.0**exponent, seed)
    found = aggregate(bundle, send(bundle, fleet, tmp_path), rule=rule, weights="examples").parameters
    for name, array in own.items():
        if rule != "svd" or "lora" not in name:
            assert found[name].tobytes() == array.tobytes(), name
    for pair in bundle.manifest.adapter.pairs:
        product, expected = (_product(tensors, pair) for tensors in (found, own))
        assert np.linalg.norm(product - expected) <= 1e-6 * np.linalg.norm(expected)


def _product(tensors: dict[str, np.ndarray], pair: LowRankPair) -> np.ndarray:
    return tensors[pair.b].astype(np.float64) @ tensors[pair.a].astype(np.float64)


@quick
@given(count=st.integers(1, 12), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_a_stack_is_the_mean_of_the_products(
    text: Trained, count: int, seed: int, data: st.DataObject, tmp_path: Path
) -> None:
    """To 1e-6 of its size, with any weights; its rank is the sum of the ranks."""
    bundle = Bundle.open(text.bundle)
    fleet = drifted(bundle, count, 0.3, seed)
    weights = data.draw(st.lists(st.floats(0.1, 10.0), min_size=count, max_size=count))
    fractions = np.array(weights) / np.sum(weights)
    found = aggregate(bundle, dict(zip(send(bundle, fleet, tmp_path), weights, strict=True)), rule="stack").parameters
    for pair in bundle.manifest.adapter.pairs:
        expected = sum(fraction * _product(own, pair) for fraction, own in zip(fractions, fleet, strict=True))
        assert found[pair.a].shape[0] == 4 * count
        assert np.linalg.norm(_product(found, pair) - expected) < 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("how", SETTINGS, ids=str)
def test_a_second_run_writes_the_same_file(
    fleet: tuple[Bundle, list[Path]], how: dict[str, object], tmp_path: Path
) -> None:
    """Adapter and report, to the byte."""
    bundle, paths = fleet
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        aggregate(bundle, paths, **how).save(tmp_path / name / "round.safetensors")  # type: ignore[arg-type]
    for file in ("round.safetensors", "round.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_mean_is_that_of_the_changes(fleet: tuple[Bundle, list[Path]]) -> None:
    """Equal weights, or examples up to the cap: against numpy, to float32's rounding."""
    bundle, paths = fleet
    sent = [read_update(path) for path in paths]
    for how, weights in (
        ({}, np.ones(7)),
        ({"weights": "examples"}, np.arange(10, 80, 10)),
        ({"weights": "examples", "examples_cap": 30}, np.array([10, 20, 30, 30, 30, 30, 30])),
    ):
        found = aggregate(bundle, paths, **how)  # type: ignore[arg-type]
        for name, array in found.parameters.items():
            expected = np.average([update.parameters[name].astype(np.float64) for update in sent], 0, weights)
            assert np.array_equal(array, expected.astype(np.float32)) or np.allclose(array, expected, rtol=2e-7)
        assert [taken.weight for taken in sorted(found.report.updates, key=lambda t: t.num_examples)] == list(weights)


def test_bad_updates_do_not_count(fleet: tuple[Bundle, list[Path]], images: Trained, tmp_path: Path) -> None:
    """Damaged, foreign, stale, not finite, missing: each is refused by name, and the result is that of the others."""
    bundle, paths = fleet
    good = read_update(paths[0])
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(paths[0].read_bytes()[:-1])
    broken = {name: array.copy() for name, array in good.parameters.items()}
    next(iter(broken.values())).flat[3] = np.nan
    write_update(tmp_path / "nan.safetensors", replace(good, parameters=broken))
    write_update(tmp_path / "stale.safetensors", replace(good, adapter_sha256="5" * 64))
    bad = [cut, images.update, *(tmp_path / f"{name}.safetensors" for name in ("nan", "stale", "missing"))]
    for how in ({}, {"robust": "median"}):
        found = aggregate(bundle, [*bad, *paths], **how)
        assert _bits(found) == _bits(aggregate(bundle, paths, **how))
        assert {refused.source: refused.code for refused in found.report.refused} == {
            "cut.safetensors": "wrong-digest",
            "missing.safetensors": "cannot-read-file",
            "nan.safetensors": "not-finite",
            "stale.safetensors": "stale-update",
            "update.safetensors": "foreign-update",
        }
        assert not any(str(tmp_path) in refused.reason for refused in found.report.refused)
    with pytest.raises(AggregationError) as caught:
        aggregate(bundle, bad)
    assert caught.value.code == "no-updates"
    assert "cut.safetensors" in str(caught.value)


def test_an_update_without_examples_has_no_weight_by_examples(text: Trained, tmp_path: Path) -> None:
    """It is refused if examples are the weight, and counts if all updates count equally."""
    bundle = Bundle.open(text.bundle)
    paths = send(bundle, drifted(bundle, 2), tmp_path, examples=[0, 5])
    assert [r.code for r in aggregate(bundle, paths, weights="examples").report.refused] == ["no-examples"]
    assert len(aggregate(bundle, paths).report.updates) == 2


def test_clipping_shortens_the_whole_change(text: Trained, tmp_path: Path) -> None:
    """A device ten times as far away as the others moves the mean no further than they do."""
    bundle = Bundle.open(text.bundle)
    (near,) = drifted(bundle, 1, 0.01)
    (far,) = drifted(bundle, 1, 10.0, seed=1)
    paths = send(bundle, [near, far], tmp_path)
    norms = {taken.sha256: taken.norm for taken in aggregate(bundle, paths).report.updates}
    limit = norms[sha256_of(paths[0])]
    clipped = aggregate(bundle, paths, clip=limit)
    assert {taken.norm for taken in clipped.report.updates} == set(norms.values())
    assert clipped.report.change is not None and clipped.report.change <= limit
    start = bundle.adapter()
    for name, array in clipped.parameters.items():
        factor = limit / norms[sha256_of(paths[1])]
        expected = start[name] + ((near[name] - start[name]) + factor * (far[name] - start[name])) / 2
        assert np.allclose(array, expected, atol=1e-6)


def test_an_aggregate_is_an_update_and_starts_the_next_round(text: Trained, tmp_path: Path) -> None:
    """merge accepts it, a device trains from it, and the returned update belongs to that round and to no other."""
    bundle = Bundle.open(text.bundle)
    first = aggregate(bundle, send(bundle, drifted(bundle, 3), tmp_path / "r1")).save(tmp_path / "round1.safetensors")
    with Trainer.open(bundle, adapter=first) as trainer:
        trainer.step({**TEXT, "labels": np.array([0, 1, 0])})
        update = trainer.save_update(tmp_path / "update.safetensors")
        logits = trainer.predict(TEXT)["logits"]
    with pytest.raises(AggregationError, match="--adapter"):
        aggregate(bundle, [update])
    second = aggregate(bundle, [update], adapter=first).save(tmp_path / "round2.safetensors")
    report = json.loads((tmp_path / "round2.json").read_text("utf-8"))
    assert (report["adapter_sha256"], report["sha256"]) == (sha256_of(first), sha256_of(second))
    assert report["updates"][0]["weight"] == 1.0
    merged = edgepeft.merge(bundle, second, to="onnx", out=tmp_path / "merged.onnx")

    assert np.abs(first_output(merged, TEXT) - logits).max() < 1e-4


def test_contradictions_are_refused_before_anything_is_read(text: Trained) -> None:
    """Settings out of range, or that do not go together, name both."""
    wrong: list[dict[str, object]] = [
        {"rule": "krum"},
        {"weights": "loss"},
        {"clip": 0.0},
        {"clip": float("nan")},
        {"examples_cap": 0},
        {"robust": "mode"},
        {"robust": "trimmed-mean"},
        {"robust": "trimmed-mean=0.5"},
        {"robust": "trimmed-mean=half"},
        {"robust": Robust("median"), "rule": "svd"},
        {"robust": "median", "weights": "examples"},
        {"others": [(text.bundle, None)]},
    ]
    for how in wrong:
        with pytest.raises(EdgepeftError):
            aggregate(text.bundle, [text.update], **how)  # type: ignore[arg-type]
    for weight in (0.0, -1.0, float("inf")):
        with pytest.raises(EdgepeftError):
            aggregate(text.bundle, {text.update: weight})


def test_nothing_is_half_written(text: Trained, tmp_path: Path) -> None:
    """If the file cannot be written, nothing remains of it."""
    found = aggregate(text.bundle, [text.update])
    with pytest.raises(EdgepeftError):
        found.save(tmp_path / "no" / "round.safetensors")
    assert os.listdir(tmp_path) == []


def test_the_acceptance_check_compares_with_the_start(text: Trained) -> None:
    """A round that lowers held-out loss is accepted, one that raises it is not, unless within the tolerance."""
    data = {**TEXT, "labels": np.array([0, 1, 0])}
    with Trainer.open(text.bundle) as trainer:
        before = trainer.evaluate(data)
        for _ in range(10):
            trainer.step(data, lr=0.02)
        better, after = trainer.parameters(), trainer.evaluate(data)
    verdict = check_acceptance(text.bundle, better, data)
    assert verdict.accepted
    assert (verdict.before, verdict.after) == (before, after)
    worse = check_acceptance(text.bundle, Bundle.open(text.bundle).adapter(), data, better)
    assert not worse.accepted
    assert worse == check_acceptance(text.bundle, Bundle.open(text.bundle).adapter(), data, after)
    assert check_acceptance(text.bundle, Bundle.open(text.bundle).adapter(), data, after, tolerance=10.0).accepted


def test_the_acceptance_check_goes_by_a_metric(text: Trained) -> None:
    """The same change is accepted by what it improves, and refused by what it does not; NaN decides nothing."""
    data = {**TEXT, "labels": np.array([0, 1, 0])}
    with Trainer.open(text.bundle) as trainer:
        before = trainer.evaluate(data, metrics=["f1"])
        for _ in range(10):
            trainer.step(data, lr=0.02)
        better = trainer.parameters()
    start = Bundle.open(text.bundle).adapter()

    def loss_like(outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> float:
        scores, (logits,) = np.arange(3), outputs.values()
        return float(-(logits[scores, batch["labels"]] - logits[scores, 1 - batch["labels"]]).mean())

    assert not check_acceptance(text.bundle, better, data, metric=loss_like).accepted
    assert check_acceptance(text.bundle, start, data, better, metric=loss_like).accepted
    verdict = check_acceptance(text.bundle, better, data, metric="f1")
    assert verdict.before == before
    assert verdict.accepted == (verdict.after.deciding.value >= before.metrics["f1"].value)
    with pytest.raises(SettingError, match="other metrics"):
        check_acceptance(text.bundle, better, data, before, metric="auc")
    with pytest.raises(DataError, match="not defined"):
        check_acceptance(text.bundle, better, {**TEXT, "labels": np.zeros(3, np.int64)}, metric="auc")
