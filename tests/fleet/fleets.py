"""A small fleet for tests: a real host, remote and devices, with the tiny bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgepeft.sync import Keys, Terms, Workspace, publish
from edgepeft.sync.publishing import commit
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.files.tensorfile import read_tensors, write_tensors
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.delivering import Delivered, deliver
from edgepeft_runtime.fleet.device_directory import DeviceDirectory
from edgepeft_runtime.fleet.joining import Joined, join
from edgepeft_runtime.fleet.rounds import Round
from edgepeft_runtime.train.trainer import Trainer
from tests.support.tiny_bundle import examples

NOW = 1_800_000_000.0
DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Fleet:
    """A campaign in a folder."""

    root: Path
    bundle: Path

    @classmethod
    def begin(cls, root: Path, bundle: Path) -> Fleet:
        """A host with a key, and nothing published."""
        fleet = cls(root, bundle)
        Keys(fleet.host).create("birds")
        return fleet

    @property
    def host(self) -> Workspace:
        return Workspace(self.root / "host")

    @property
    def remote(self) -> Path:
        return self.root / "remote"

    def publish(self, seed: int | None = None, *, now: float = NOW, with_bundle: bool = False, **terms: Any) -> Round:
        """The next round, of an adapter with noise by ``seed``, or the bundle's own."""
        adapter = None if seed is None else self.adapter(seed)
        return publish(
            self.bundle,
            self.host,
            [self.remote],
            adapter=adapter,
            terms=Terms(**terms),
            with_bundle=with_bundle,
            now=now,
        )

    def sign(self, **changes: Any) -> Round:
        """Sign a round with any changes of the newest, and write it to the remote."""
        newest = self.host.round(self.host.newest().round)
        made = replace(newest, round=newest.round + 1, previous=newest.sha256, **changes)
        commit(self.host, Keys(self.host).host(), made, self.host.adapter(newest.round).read_bytes())
        shutil.copytree(self.host.published, self.remote, dirs_exist_ok=True)
        return made

    def adapter(self, seed: int) -> Path:
        """An adapter of the bundle with other values."""
        draw = np.random.default_rng(seed)
        path = self.root / f"adapter-{seed}.safetensors"
        tensors = read_tensors(self.bundle / "adapter.safetensors").tensors
        write_tensors(path, {n: (a + 0.1 * draw.normal(size=a.shape)).astype(a.dtype) for n, a in tensors.items()})
        return path

    def device(self, name: str = "pi-1", algorithm: str = signatures.HMAC) -> Device:
        """A registered device that has its identity."""
        path = self.root / f"{name}.json"
        Keys(self.host).add(name, path, algorithm)
        device = Device(self, DeviceDirectory(self.root / "devices" / name))
        device.directory.adopt(path)
        return device


@dataclass(frozen=True)
class Device:
    """A device of a fleet."""

    fleet: Fleet
    directory: DeviceDirectory

    def join(self, now: float = NOW + 60, **more: Any) -> Joined:
        """The newest round at the fleet's remote."""
        return join(self.fleet.remote, self.directory, self.fleet.bundle, now=now, **more)

    def fetch(self, now: float = NOW + 60, **more: Any) -> Joined:
        """The newest round, with the bundle that travels with it."""
        return join(self.fleet.remote, self.directory, now=now, **more)

    def train(self, steps: int = 2, seed: int = 0) -> Path:
        """An update of some steps from the round in use."""
        current = self.directory.start()
        with Trainer.open(self.fleet.bundle, adapter=current.adapter) as trainer:
            for step in range(steps):
                trainer.step(examples(8, 1000 * seed + step), lr=0.01)
            self.directory.settle()
            return trainer.save_update(self.directory.path / f"update-{current.round.round}-{steps}-{seed}.safetensors")

    def deliver(self, update: Path | None = None) -> Delivered:
        """Write an update to the fleet's remote."""
        return deliver(update or self.train(), self.fleet.remote, self.directory)


def code_of(call: Any, *arguments: Any, **more: Any) -> str:
    """The reference of the error that a call raises; ``""`` if it raises none."""
    try:
        call(*arguments, **more)
    except EdgepeftError as error:
        return error.code
    return ""


class PowerCut(BaseException):
    """Ends everything, as no error does."""


class Countdown:
    """Functions that work so many times, and from then on fail.

    Args:
        failure: what they then raise.
    """

    def __init__(self, failure: BaseException) -> None:
        self.calls: int | None = None
        """How many more calls work; ``None``: any number."""
        self._failure = failure

    def guarded(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The function, until the calls are used up."""

        def call(*arguments: Any, **more: Any) -> Any:
            if self.calls is not None:
                self.calls -= 1
                if self.calls < 0:
                    raise self._failure
            return original(*arguments, **more)

        return call

    def ends(self, call: Callable[[], object]) -> bool:
        """Whether the failure ends a call: as what it is, or, an error of the disk, as one that a user can read."""
        try:
            return code_of(call) == "cannot-write-file"
        except PowerCut:
            return True
