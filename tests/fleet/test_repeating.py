"""Steps of a host that are repeated, rounds that a device remembers, and an inbox that is emptied."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepeft.sync import Terms, accepted, closing, collect, publish, rollback
from edgepeft_runtime.fleet import history
from edgepeft_runtime.fleet.delivering import deliver
from edgepeft_runtime.fleet.joining import join
from edgepeft_runtime.fleet.rounds import MAX_STALENESS, Round
from tests.fleet.fleets import DAY, NOW, Fleet, code_of
from tests.fleet.servers import serving


def test_publishing_again_brings_the_same_round(fleet: Fleet) -> None:
    """Also to a remote that the first call did not reach; other terms, another adapter or its expiry make a new one."""
    first = fleet.publish(seed=1, days=2)
    other = fleet.root / "other"
    again = publish(
        fleet.bundle, fleet.host, [other], adapter=fleet.adapter(1), terms=Terms(days=2), now=NOW + DAY + 0.7
    )
    assert again == first
    assert (other / "latest.json").read_bytes() == (fleet.remote / "latest.json").read_bytes()
    assert fleet.publish(seed=1, days=2, now=NOW + 2 * DAY).round == 2
    assert fleet.publish(seed=1, days=3, now=NOW + 2 * DAY).round == 3
    assert fleet.publish(seed=1, days=3, min_devices=2, now=NOW + 2 * DAY).round == 4
    assert fleet.publish(seed=2, days=3, min_devices=2, now=NOW + 2 * DAY).round == 5
    terms = Terms(days=3, min_devices=2)
    made = publish(fleet.bundle, fleet.host, adapter=fleet.adapter(2), terms=terms, another=True, now=NOW + 2 * DAY)
    assert made.round == 6
    fleet.host.check_chain()


def test_rolling_back_again_changes_nothing(fleet: Fleet) -> None:
    """The round that has the adapter is brought once more; the way back to another one is open."""
    fleet.publish(seed=1)
    fleet.publish(seed=2)
    made = rollback(fleet.host, 1, [fleet.remote], now=NOW)
    assert (made.round, made.restores) == (3, 1)
    for remote in (fleet.remote, fleet.root / "other"):
        assert rollback(fleet.host, 1, [remote], now=NOW + 60) == made
        assert Round.from_bytes((remote / "r000003" / "round.json").read_bytes()) == made
    assert rollback(fleet.host, 2, now=NOW).restores == 2


def test_what_is_brought_again_is_what_was_published(fleet: Fleet) -> None:
    """An adapter that has rotted in the workspace goes nowhere."""
    fleet.publish(seed=1)
    path = fleet.host.published / "r000001" / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert code_of(fleet.publish, 1) == "damaged-workspace"


# Late updates


def test_an_update_can_be_delivered_three_rounds_late(fleet: Fleet) -> None:
    """A device has two slots, and remembers the rounds it has joined before."""
    device = fleet.device()
    fleet.publish(seed=1)
    device.join()
    update = device.train()
    for seed in (2, 3, 4):
        fleet.publish(seed=seed, max_staleness=3)
        device.join()
    assert [number.round for number in device.directory.known()] == [4, 3, 2, 1]
    assert device.deliver(update).delivery.round == 1
    assert collect([fleet.remote], fleet.host, now=NOW + 60).refused == ()
    assert [(entry.round, entry.staleness) for entry, _ in accepted(fleet.host)] == [(1, 3)]
    assert list(closing(fleet.host).updates.values()) == [0.5]


def test_only_so_many_rounds_are_remembered(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as an update may be late; a file that is damaged is as though it were not there."""
    monkeypatch.setattr(history, "MAX_STALENESS", 2)
    device = fleet.device()
    for seed in range(1, 6):
        fleet.publish(seed=seed)
        device.join()
    folder = device.directory.path / history.FOLDER
    assert sorted(path.name for path in folder.iterdir()) == ["r000003.json", "r000004.json", "r000005.json"]
    (folder / "r000003.json").write_bytes(b"{")
    assert [number.round for number in device.directory.known()] == [5, 4]


def test_no_round_accepts_updates_later_than_devices_remember(fleet: Fleet) -> None:
    """Neither is one published nor is one believed."""
    assert code_of(fleet.publish, max_staleness=MAX_STALENESS + 1) == "bad-setting"
    content = fleet.publish(max_staleness=MAX_STALENESS).to_bytes()
    found = content.replace(b'"max_staleness":31', b'"max_staleness":32')
    assert code_of(Round.from_bytes, found) == "bad-round"


# What the server received


def _received(fleet: Fleet) -> list[Path]:
    return [path for path in (fleet.host.received / "inbox").rglob("*") if path.is_file()]


def test_received_files_are_removed_once_they_are_kept(fleet: Fleet) -> None:
    """A device that repeats its delivery learns that it has arrived, and sends nothing again."""
    device = fleet.device()
    fleet.publish(seed=1)
    with serving(fleet.host) as port:
        address = f"http://127.0.0.1:{port}"
        join(address, device.directory, fleet.bundle, now=NOW)
        update = device.train()
        deliver(update, address, device.directory)
        assert len(_received(fleet)) == 2
        assert len(collect([fleet.host.received], fleet.host, now=NOW).accepted) == 1
        assert _received(fleet) == []
        assert deliver(update, address, device.directory).repeated
        assert _received(fleet) == []
    assert len(accepted(fleet.host)) == 1


def test_half_deliveries_of_closed_rounds_go(fleet: Fleet) -> None:
    """As long as the round is open they wait; afterwards nothing can complete them, and their folders go too."""
    device = fleet.device()
    fleet.publish(seed=1)
    device.join()
    delivered = device.deliver().delivery
    half = fleet.host.received / delivered.folder / f"{delivered.sha256}.safetensors"
    half.parent.mkdir(parents=True)
    half.write_bytes((fleet.remote / delivered.folder / half.name).read_bytes())
    assert len(collect([fleet.host.received], fleet.host, now=NOW).waiting) == 1
    fleet.publish(seed=2, max_staleness=1)
    assert len(collect([fleet.host.received], fleet.host, now=NOW).waiting) == 1
    fleet.publish(seed=3, max_staleness=1)
    assert collect([fleet.host.received], fleet.host, now=NOW).waiting == ()
    assert list((fleet.host.received / "inbox").iterdir()) == []
