"""A fleet to attack."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgepeft.sync import Collected, accepted, collect
from edgepeft_runtime.files.tensorfile import read_tensors, write_tensors
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.delivery import Delivery
from edgepeft_runtime.fleet.device_directory import DeviceDirectory
from edgepeft_runtime.fleet.identity import Identity
from edgepeft_runtime.train.update import read_update, write_update
from tests.fleet.fleets import NOW, Device, Fleet

NAME = "mallory"
"""The device whose key the attacker has."""


@dataclass(frozen=True)
class Stage:
    """A fleet at round 3 with two honest updates accepted, and all that an attacker has access to."""

    fleet: Fleet
    update: Path
    """A good update of round 3, not delivered yet."""
    old: Path
    """The remote at round 2."""

    @classmethod
    def build(cls, root: Path, bundle: Path) -> Stage:
        """Three rounds; two devices deliver to the last."""
        fleet = Fleet.begin(root, bundle)
        devices = [fleet.device(name) for name in ("pi-1", "pi-2", NAME, "ed")]
        fleet.publish(seed=1)
        fleet.publish(seed=2)
        shutil.copytree(fleet.remote, root / "old")
        fleet.publish(seed=3, max_update_norm=1.0, norm_action="refuse", max_staleness=1, days=30)
        for device in devices:
            device.join()
        for seed, device in enumerate(devices[:2]):
            device.deliver(device.train(seed=seed))
        assert len(collect([fleet.remote], fleet.host, now=NOW).accepted) == 2
        return cls(fleet, devices[2].train(seed=9), root / "old")

    def copied(self, root: Path) -> Stage:
        """A stage of its own to attack."""
        fleet = Fleet(Path(shutil.copytree(self.fleet.root, root)), self.fleet.bundle)
        return Stage(fleet, root / self.update.relative_to(self.fleet.root), root / "old")

    @property
    def device(self) -> Device:
        """The attacker's device. If the remote attacks, the victim."""
        return Device(self.fleet, DeviceDirectory(self.fleet.root / "devices" / NAME))

    @cached_property
    def identity(self) -> Identity:
        """The identity that the attacker's device was given."""
        return Identity.read(self.fleet.root / f"{NAME}.json")

    @property
    def good(self) -> bytes:
        return self.update.read_bytes()

    def collect(self, now: float = NOW + 60) -> Collected:
        """Collect as the host, and return its report."""
        return collect([self.fleet.remote], self.fleet.host, now=now)

    def kept(self) -> list[tuple[str, bytes]]:
        """Return the bytes of all that counts for the round."""
        return [(entry.device, path.read_bytes()) for entry, path in accepted(self.fleet.host)]

    def folder(self, number: int = 3, device: str = NAME) -> Path:
        path = self.fleet.remote / "inbox" / f"r{number:06d}" / device
        path.mkdir(parents=True, exist_ok=True)
        return path

    def delivery(self, content: bytes, **fields: Any) -> Delivery:
        """A sidecar of the attacker's device, signed by its key."""
        digest = signatures.sha256(content)
        bare = Delivery("birds", 3, NAME, 1, digest, len(content), signatures.HMAC)
        return replace(bare, **fields).signed(self.identity.key)

    def leave(self, content: bytes, sidecar: Delivery | bytes, number: int = 3, device: str = NAME) -> Path:
        """Write an update under its hash, and its sidecar."""
        path = self.folder(number, device) / f"{signatures.sha256(content)}.safetensors"
        path.write_bytes(content)
        written = sidecar if isinstance(sidecar, bytes) else sidecar.to_bytes()
        path.with_suffix(".sig").write_bytes(written)
        return path

    def leave_signed(self, content: bytes, **fields: Any) -> Path:
        """Write an update that the attacker's device has signed, at the path that its signature states."""
        sidecar = self.delivery(content, **fields)
        return self.leave(content, sidecar, sidecar.round, sidecar.device)

    def changed(self, **fields: Any) -> bytes:
        """The good update with other fields, its digest made again."""
        path = self.fleet.root / "changed"
        write_update(path, replace(read_update(self.update), **fields))
        return path.read_bytes()

    def with_tensors(self, change: Callable[[dict[str, Any]], None]) -> bytes:
        """The good update with other tensors, its digest made again."""
        parameters = {name: array.copy() for name, array in read_update(self.update).parameters.items()}
        change(parameters)
        return self.changed(parameters=parameters)

    def with_coded(self, data: bytes, names: str = '["head.bias"]') -> bytes:
        """The good update with other bytes for a bias, and delta-coded indices in its metadata, with its digest."""
        path, file = self.fleet.root / "changed", read_tensors(self.update)
        tensors = {**file.tensors, "head.bias": np.frombuffer(data, np.uint8)}
        write_tensors(path, tensors, {**file.metadata, "delta_indices": names}, digest=True)
        return path.read_bytes()
