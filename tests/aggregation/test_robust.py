"""Limits on bad devices and on what an update reveals about its device: clipping, medians, noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft.aggregation import Privacy, aggregate
from edgepeft.aggregation.errors import AggregationError
from edgepeft.aggregation.privacy import epsilon
from edgepeft.errors import Contradiction
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import BadSetting
from edgepeft_runtime.files.tensorfile import sha256_of
from edgepeft_runtime.train.update import read_update, write_update
from tests.support.bundles import Trained
from tests.support.simulated_devices import drifted, send


def test_robust_statistics_are_those_of_numpy(text: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of odd and even numbers of devices, in blocks that cut tensors anywhere."""
    bundle = Bundle.open(text.bundle)
    for count, block in ((5, 2**27), (8, 8 * 8 * 37)):
        monkeypatch.setattr("edgepeft.aggregation.robust.BLOCK_BYTES", block)
        fleet = drifted(bundle, count, 0.3, count)
        paths = send(bundle, fleet, tmp_path / str(count))
        median, trimmed = (aggregate(bundle, paths, robust=robust) for robust in ("median", "trimmed-mean=0.25"))
        assert (median.report.cut, trimmed.report.cut) == ((count - 1) // 2, count // 4)
        for name, array in median.parameters.items():
            values = np.sort([own[name].astype(np.float64) for own in fleet], axis=0)
            assert np.allclose(array, np.median(values, axis=0), rtol=1e-6)
            cut = count // 4
            assert np.allclose(trimmed.parameters[name], values[cut : count - cut].mean(axis=0), rtol=1e-6, atol=1e-9)


def test_robust_statistics_withstand_what_they_cut(text: Trained, tmp_path: Path) -> None:
    """Three of ten devices send huge numbers: the result stays among the honest ones; the mean does not."""
    bundle = Bundle.open(text.bundle)
    honest, bad = drifted(bundle, 7, 0.1), drifted(bundle, 3, 1e4, 1)
    paths = send(bundle, [*honest, *bad], tmp_path)
    for robust in ("median", "trimmed-mean=0.3"):
        for name, array in aggregate(bundle, paths, robust=robust).parameters.items():
            values = [own[name] for own in honest]
            assert (np.min(values, axis=0) <= array).all() and (array <= np.max(values, axis=0)).all()
    norm = aggregate(bundle, paths).report.change
    assert norm is not None and norm > 1e3


def test_a_trimmed_mean_that_trims_none_is_refused(text: Trained, tmp_path: Path) -> None:
    """Four devices at 20 %: the error says how many are needed."""
    bundle = Bundle.open(text.bundle)
    with pytest.raises(AggregationError, match="at least 5 devices") as caught:
        aggregate(bundle, send(bundle, drifted(bundle, 4), tmp_path), robust="trimmed-mean=0.2")
    assert caught.value.code == "nothing-trimmed"


def test_noise_is_that_of_the_clipping_norm(text: Trained, tmp_path: Path) -> None:
    """Its deviation per coordinate is noise · clip / devices; epsilon is the one of the Gaussian mechanism."""
    bundle = Bundle.open(text.bundle)
    paths = send(bundle, drifted(bundle, 4, 0.01), tmp_path)
    plain = aggregate(bundle, paths, clip=0.5)
    noisy = aggregate(bundle, paths, clip=0.5, privacy=Privacy(2.0, seed=1))
    off = np.concatenate([(noisy.parameters[n] - plain.parameters[n]).reshape(-1) for n in plain.parameters])
    spent = noisy.report.privacy
    assert spent is not None and spent.deviation == 2.0 * 0.5 / 4
    assert off.std() == pytest.approx(spent.deviation, rel=0.1)
    assert abs(off.mean()) < 4 * spent.deviation / np.sqrt(off.size)
    again, fresh = (aggregate(bundle, paths, clip=0.5, privacy=Privacy(2.0, seed=seed)) for seed in (1, None))
    name = next(iter(plain.parameters))
    assert np.array_equal(again.parameters[name], noisy.parameters[name])
    assert not np.array_equal(fresh.parameters[name], noisy.parameters[name])


def test_sampled_updates_are_a_secret_subset(text: Trained, tmp_path: Path) -> None:
    """Each update counts whole or not at all, by a coin; the sum is divided by how many are expected to count."""
    bundle = Bundle.open(text.bundle)
    count, sampling = 4, 0.25
    paths = send(bundle, drifted(bundle, count, 0.01), tmp_path)
    start = _flat(bundle.adapter())
    changes = np.stack([_flat(read_update(path).parameters) - start for path in paths])
    drawn = []
    for seed in range(24):
        privacy = Privacy(1e-9, sampling=sampling, seed=seed)
        found = aggregate(bundle, paths, clip=100.0, privacy=privacy)
        assert len(found.report.updates) == count
        shares = np.linalg.lstsq(changes.T, _flat(found.parameters) - start, rcond=None)[0] * sampling * count
        drawn.append(np.round(shares))
        assert np.allclose(shares, drawn[-1], atol=1e-3) and set(drawn[-1]) <= {0.0, 1.0}
    assert all(0 < fraction < 0.6 for fraction in np.mean(drawn, axis=0))
    assert not min(np.sum(drawn, axis=1))  # a round in which nobody counts is a round too
    spent = found.report.privacy
    assert spent is not None and spent.deviation == pytest.approx(1e-9 * 100.0 / (sampling * count))


def _flat(parameters: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([parameters[name].ravel().astype(np.float64) for name in sorted(parameters)])


def test_what_leaves_the_host_reveals_no_counts(text: Trained, tmp_path: Path) -> None:
    """Adapter and report of a private round are the same bytes whatever devices say they have trained on."""
    bundle, written = Bundle.open(text.bundle), []
    for claim in (3, 1000):
        folder = tmp_path / str(claim)
        folder.mkdir()
        paths = send(bundle, drifted(bundle, 2), folder)
        for path in paths:
            claims = {"num_examples": claim, "steps": claim, "loss_before": float(claim), "loss_after": 0.5 / claim}
            write_update(path, replace(read_update(path), **claims))
        found = aggregate(bundle, paths, clip=0.5, privacy=Privacy(2.0, seed=1))
        saved = found.save(folder / "round.safetensors")
        assert (read_update(saved).num_examples, read_update(saved).steps) == (0, 0)
        report = saved.with_suffix(".json").read_bytes()
        assert not [path for path in paths if sha256_of(path).encode() in report]
        written.append((saved.read_bytes(), report))
    assert written[0] == written[1]


def test_epsilon_is_accounted_for() -> None:
    """Between the exact value of one Gaussian release and a loose bound; more rounds cost more, sampling less."""
    one = epsilon(Privacy(1.0))
    assert 4.3 < one < 5.5  # exact: 4.38 (Balle and Wang, ICML 2018)
    assert epsilon(Privacy(1.0, rounds=10)) > 2 * one
    assert epsilon(Privacy(1.0, rounds=10, sampling=0.01)) < one
    assert epsilon(Privacy(2.0)) < one


def test_privacy_is_refused_where_it_would_not_hold(text: Trained) -> None:
    """Without clipping, with weights that a device chooses, or with other statistics."""
    wrong: list[dict[str, object]] = [{}, {"clip": 1.0, "weights": "examples"}, {"clip": 1.0, "rule": "svd"}]
    wrong += [{"clip": 1.0, "robust": "median"}]
    for how in wrong:
        with pytest.raises(Contradiction, match="do not go together"):
            aggregate(text.bundle, [text.update], privacy=Privacy(1.0), **how)  # type: ignore[arg-type]
    for values in ({"noise": 0.0}, {"noise": 1.0, "delta": 1.0}, {"noise": 1.0, "sampling": 0.0}):
        with pytest.raises(BadSetting, match="out of range"):
            Privacy(**values)


def test_a_file_that_changes_between_passes_ends_the_round(
    text: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Robust statistics read updates several times. A file that changes in between is refused."""
    from edgepeft.aggregation import robust

    bundle = Bundle.open(text.bundle)
    paths = send(bundle, drifted(bundle, 5), tmp_path)
    blocks = robust._blocks

    def meanwhile(*arguments: Any) -> Any:
        paths[2].write_bytes(paths[2].read_bytes()[:-1])
        return blocks(*arguments)

    monkeypatch.setattr(robust, "_blocks", meanwhile)
    with pytest.raises(AggregationError) as caught:
        aggregate(bundle, paths, robust="median")
    assert caught.value.code == "changed-file"
    assert paths[2].name in str(caught.value)
