"""Sparse changes of many devices: unions of indices, absent ones as zero, cut to the size that a bundle has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgepeft
from edgepeft.aggregation import Privacy, aggregate
from edgepeft.aggregation.errors import AggregationError
from edgepeft.methods import Sift
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.files.tensorfile import write_tensors
from tests.support.networks import NETWORKS
from tests.support.simulated_devices import Tensors, drifted, send

BERT = NETWORKS["bert"]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """BERT with SIFT, whose indices each device picks."""
    out = tmp_path_factory.mktemp("sift") / "bundle"
    made = edgepeft.prepare(BERT.model(), BERT.example(), method=Sift(rate=0.02), out=out)
    return Bundle.open(made.bundle)


def _picked(bundle: Bundle, seed: int, indices_seed: int | None = None) -> Tensors:
    """A device that picked its indices (or those of another seed)."""
    (own,) = drifted(bundle, 1, 0.1, seed)
    draw = np.random.default_rng(seed if indices_seed is None else indices_seed)
    for spec in bundle.manifest.sparse:
        own[spec.indices] = np.sort(draw.permutation(spec.size)[: own[spec.indices].size]).astype(np.int32)
    return own


def _dense(bundle: Bundle, tensors: Tensors) -> dict[str, np.ndarray]:
    found = {}
    for spec in bundle.manifest.sparse:
        found[spec.tensor] = np.zeros(spec.size)
        found[spec.tensor][tensors[spec.indices]] = tensors[spec.values]
    return found


def test_absent_indices_count_as_zero(sparse: Bundle, tmp_path: Path) -> None:
    """A stack contains the exact union. An update contains its largest elements and reports their fraction."""
    fleet = [_picked(sparse, seed) for seed in range(3)]
    paths = send(sparse, fleet, tmp_path)
    dense = [_dense(sparse, own) for own in fleet]
    whole, cut = (aggregate(sparse, paths, rule=rule) for rule in ("stack", "fedavg"))
    assert cut.report.sparse.keys() == {spec.tensor for spec in sparse.manifest.sparse}
    for spec in sparse.manifest.sparse:
        exact = np.mean([own[spec.tensor] for own in dense], axis=0)
        assert np.allclose(_dense(sparse, whole.parameters)[spec.tensor], exact, atol=1e-8)
        kept = _dense(sparse, cut.parameters)[spec.tensor]
        count = fleet[0][spec.values].size
        assert np.count_nonzero(kept) == count
        assert np.allclose(np.sort(np.abs(kept))[-count:], np.sort(np.abs(exact))[-count:], atol=1e-8)
        assert np.allclose(kept[kept != 0], exact[kept != 0], atol=1e-8)
        union = cut.report.sparse[spec.tensor]
        assert (union.indices, union.kept) == (np.count_nonzero(exact), count)
        assert union.fraction == pytest.approx(np.square(kept).sum() / np.square(exact).sum(), rel=1e-6)
    cut.save(tmp_path / "round.safetensors")
    with Trainer.open(sparse, adapter=tmp_path / "round.safetensors") as trainer:
        assert not trainer.must_pick


def test_picked_indices_stay_in_later_rounds(sparse: Bundle, tmp_path: Path) -> None:
    """For devices of one mask, means are exact, also robust ones. The mean of one device is bit-identical to it."""
    fleet = [_picked(sparse, seed, 7) for seed in range(5)]
    paths = send(sparse, fleet, tmp_path)
    for how, statistic in (({}, np.mean), ({"robust": "median"}, np.median)):
        found = aggregate(sparse, paths, **how)  # type: ignore[arg-type]
        for spec in sparse.manifest.sparse:
            assert np.array_equal(found.parameters[spec.indices], fleet[0][spec.indices])
            exact = statistic([own[spec.values].astype(np.float64) for own in fleet], axis=0)
            assert np.allclose(found.parameters[spec.values], exact, rtol=1e-6)
            assert found.report.sparse[spec.tensor].fraction == 1.0
    alone = aggregate(sparse, paths[:1]).parameters
    assert all(alone[name].tobytes() == fleet[0][name].tobytes() for name in alone)


def test_a_fleet_that_has_not_picked_changes_nothing(sparse: Bundle, tmp_path: Path) -> None:
    """Devices that took no step send indices of -1; with one that has, its indices are taken."""
    start = sparse.adapter()
    (idle,) = send(sparse, [start], tmp_path / "idle")
    found = aggregate(sparse, [idle])
    assert all(found.parameters[name].tobytes() == start[name].tobytes() for name in start)
    own = _picked(sparse, 0)
    (busy,) = send(sparse, [own], tmp_path / "busy")
    both = aggregate(sparse, [idle, busy]).parameters
    for spec in sparse.manifest.sparse:
        assert np.array_equal(both[spec.indices], own[spec.indices])
        assert np.allclose(both[spec.values], own[spec.values] / 2, rtol=1e-6)


def test_clipping_counts_sparse_changes(sparse: Bundle, tmp_path: Path) -> None:
    """The norm of a device's change is that of the dense tensors, also from indices that are picked already."""
    first = tmp_path / "start.safetensors"
    write_tensors(first, _picked(sparse, 0))
    with Trainer.open(sparse, adapter=first) as trainer:
        start = trainer.parameters()
    own = _picked(sparse, 1)
    (path,) = send(sparse, [own], tmp_path / "u", first)
    one, other = _dense(sparse, own), _dense(sparse, start)
    whole = [own[n].astype(np.float64) - start[n] for n in own if not n.endswith((".indices", ".values"))]
    norm = np.sqrt(sum(np.square(part).sum() for part in [*(one[name] - other[name] for name in one), *whole]))
    found = aggregate(sparse, [path], adapter=first, clip=norm / 4)
    assert found.report.updates[0].norm == pytest.approx(norm, rel=1e-6)
    stack = aggregate(sparse, [path], adapter=first, clip=norm / 4, rule="stack").parameters
    for name, array in _dense(sparse, stack).items():
        assert np.allclose(array, other[name] + (one[name] - other[name]) / 4, atol=1e-7)


def test_indices_picked_by_data_are_not_private(sparse: Bundle, tmp_path: Path) -> None:
    """Noise on the values does not hide which elements a device has chosen."""
    with pytest.raises(AggregationError) as caught:
        aggregate(sparse, send(sparse, [_picked(sparse, 0)], tmp_path), clip=1.0, privacy=Privacy(1.0))
    assert caught.value.code == "private-indices"
