"""Where ``edgepeft train`` starts: alone, or from the round of a fleet's device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepeft.cli.screen.verbosity import say
from edgepeft_runtime.errors import BatchError, CannotWriteFile, DataError, NotFinite, StateError
from edgepeft_runtime.train.callbacks import Callback

if TYPE_CHECKING:
    from edgepeft_runtime.fleet.device_directory import Current, DeviceDirectory
    from edgepeft_runtime.fleet.rounds import Round
    from edgepeft_runtime.train.records import Progress


def check_options(bundle: Path | None, device: Path | None, adapter: Path | None) -> None:
    """Check that a bundle or a device, and at most one adapter, are given; raises ``click.UsageError``."""
    if bundle is None and device is None:
        raise click.UsageError("Give a BUNDLE, or --device on a device that has fetched one.")
    if device is not None and adapter is not None:
        raise click.UsageError("Give either --adapter or --device, which has an adapter of its own.")


@dataclass(frozen=True)
class TrainingStart:
    """The adapter to start from and where to keep the run; alone, or as part of a fleet.

    Args:
        state: Directory of the run.
        bundle: The bundle to train.
        adapter: The adapter to start from; ``None``: the bundle's own.
        device: The device directory; ``None`` outside a fleet.
        round: The round in use there.
    """

    state: Path
    bundle: Path
    adapter: Path | None = None
    device: DeviceDirectory | None = None
    round: Round | None = None

    @classmethod
    def of(
        cls, bundle: Path | None, device: Path | None, state: Path | None, adapter: Path | None, update: Path
    ) -> TrainingStart:
        """Read the options of these names. It counts a start in the device directory, so call it as training starts."""
        if device is None:
            return cls(state or update.with_suffix(".state"), bundle or Path(), adapter)
        from edgepeft_runtime.fleet.device_directory import DeviceDirectory

        directory = DeviceDirectory(device)
        current = directory.start()
        say(f"training from round {current.round.round} of {current.round.campaign}", err=True)
        run = state or directory.run(current.round.round)
        return cls(run, bundle or _fetched(current), current.adapter, directory, current.round)

    def limited(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of ``fit`` within the limits of the round."""
        most = None if self.round is None else self.round.limits.steps
        wanted = settings["max_steps"]
        if most is None:
            return settings
        return {**settings, "max_steps": most if wanted is None else min(most, wanted)}

    @contextmanager
    def settling(self) -> Iterator[None]:
        """Count the start as good, unless it fails for another reason than data, state or the user."""
        try:
            yield
        except (BatchError, NotFinite, DataError, StateError, CannotWriteFile, KeyboardInterrupt):
            self._settle()
            raise
        self._settle()

    def callbacks(self) -> list[Callback]:
        """Return what records in the device directory that the adapter makes good steps."""
        return [] if self.device is None else [_Settling(self.device)]

    def _settle(self) -> None:
        if self.device is not None:
            self.device.settle()


class _Settling(Callback):
    """Records with the first steps that the adapter of a round is good."""

    def __init__(self, device: DeviceDirectory) -> None:
        self._device = device
        self._settled = False

    def on_step(self, progress: Progress) -> None:  # noqa: ARG002  (the signature is the callback's)
        """Record it once."""
        self._settled = self._settled or self._device.settle()


def _fetched(current: Current) -> Path:
    """Return the bundle that was fetched with a round."""
    if current.bundle is None:
        raise click.UsageError("Give the BUNDLE: the round in use was joined with --bundle.")
    return current.bundle
