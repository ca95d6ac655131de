"""The end of a round: which updates count, once, and the effect of a late one on the next round."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgepeft.aggregation import Privacy, aggregate
from edgepeft.errors import Contradiction
from edgepeft.sync import closing, collect
from edgepeft.sync.errors import SyncError
from edgepeft_runtime.files.tensorfile import read_tensors
from edgepeft_runtime.train.update import read_update
from tests.fleet.fleets import NOW, Device, Fleet


def _close(fleet: Fleet) -> dict[str, tuple[int, float]]:
    """Steps and factor of each counted update, in the order of hashes."""
    found = closing(fleet.host)
    return {path.name: (read_update(path).steps, factor) for path, factor in found.updates.items()}


def _pull(fleet: Fleet) -> None:
    assert collect([fleet.remote], fleet.host, now=NOW + 120).refused == ()


def _late(fleet: Fleet, device: Device, max_staleness: int) -> Path:
    """An update of round 1 that is delivered when round 2 is out."""
    fleet.publish(seed=1)
    device.join()
    late = device.train()
    fleet.publish(seed=2, max_staleness=max_staleness)
    device.deliver(late)
    return late


def test_a_late_update_moves_the_next_round_with_less_weight(fleet: Fleet) -> None:
    """Its change since its own round's adapter is added to this round's, by 1 / sqrt(1 + rounds late)."""
    late, quick = _late(fleet, fleet.device("slow"), max_staleness=1), fleet.device("quick")
    quick.join()
    in_time = quick.train(seed=1)
    quick.deliver(in_time)
    _pull(fleet)
    found = closing(fleet.host)
    assert sorted(found.updates.values()) == [math.sqrt(0.5), 1.0]
    alike = closing(fleet.host, alike=True)
    assert [path.read_bytes() for path in alike.updates] == [in_time.read_bytes()]
    assert (alike.left_out, alike.earlier) == (1, ())
    result = aggregate(fleet.bundle, found.updates, adapter=found.adapter, earlier=found.earlier)
    starts = [read_tensors(fleet.adapter(seed)).tensors for seed in (1, 2)]
    for name, array in result.parameters.items():
        changes = [
            read_update(path).parameters[name] - start[name]
            for path, start in ((late, starts[0]), (in_time, starts[1]))
        ]
        expected = starts[1][name] + (math.sqrt(0.5) * changes[0] + changes[1]) / (1 + math.sqrt(0.5))
        assert np.allclose(array, expected, atol=1e-6), name
    for settings in ({"robust": "median"}, {"privacy": Privacy(1.0), "clip": 1.0}):
        with pytest.raises(Contradiction, match="needs equal weights"):
            aggregate(fleet.bundle, found.updates, adapter=found.adapter, earlier=found.earlier, **settings)


def test_a_late_update_is_clipped_by_its_own_change(fleet: Fleet) -> None:
    """The norm is that of the device's change, not of the distance between the rounds."""
    late = _late(fleet, fleet.device(), max_staleness=1)
    _pull(fleet)
    found = closing(fleet.host)
    result = aggregate(fleet.bundle, found.updates, adapter=found.adapter, earlier=found.earlier, clip=1e-3)
    (taken,) = result.report.updates
    first, second = (read_tensors(fleet.adapter(seed)).tensors for seed in (1, 2))
    changes = {name: array - first[name] for name, array in read_update(late).parameters.items()}
    norm = math.sqrt(sum(float(np.square(change, dtype=np.float64).sum()) for change in changes.values()))
    assert taken.norm == pytest.approx(norm) and taken.clipped == pytest.approx(1e-3 / norm)
    for name, array in result.parameters.items():
        assert np.allclose(array, second[name] + taken.clipped * changes[name], atol=1e-7), name


def test_no_device_counts_twice_for_a_round(fleet: Fleet) -> None:
    """An update in time belongs to its own round. A second, late update of that device is left out."""
    device = fleet.device()
    fleet.publish(seed=1)
    device.join()
    first, second = device.train(steps=1), device.train(steps=3)
    device.deliver(first)
    _pull(fleet)
    assert list(_close(fleet).values()) == [(1, 1.0)]
    fleet.publish(seed=2, max_staleness=2)
    device.deliver(second)
    _pull(fleet)
    with pytest.raises(SyncError, match="too few devices"):
        closing(fleet.host)


def test_a_late_update_counts_in_the_round_it_came_in_alone(fleet: Fleet) -> None:
    """A round later it is history, however late updates may be then."""
    _late(fleet, fleet.device(), max_staleness=5)
    _pull(fleet)
    assert list(_close(fleet).values()) == [(2, math.sqrt(0.5))]
    fleet.publish(seed=3, max_staleness=5)
    with pytest.raises(SyncError, match="too few devices"):
        closing(fleet.host)


def test_late_devices_do_not_make_up_for_missing_ones(fleet: Fleet) -> None:
    """Where late updates do not count, neither do their devices: the round stays open, and says why."""
    slow, quick = fleet.device("slow"), fleet.device("quick")
    fleet.publish(seed=1)
    slow.join()
    slow.deliver()
    fleet.publish(seed=2, max_staleness=1, min_devices=2)
    quick.join()
    quick.deliver()
    _pull(fleet)
    with pytest.raises(SyncError, match="1 more have delivered late") as caught:
        closing(fleet.host, alike=True)
    assert caught.value.code == "too-few-devices"
    assert len(closing(fleet.host).updates) == 2
