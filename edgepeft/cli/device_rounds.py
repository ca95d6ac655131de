"""What it changes for ``edgepeft train`` that a device is part of a fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepeft_runtime.errors import BatchError, DataError, StateError

if TYPE_CHECKING:
    from edgepeft_runtime.fleet.rounds import Round
    from edgepeft_runtime.fleet.slots import DeviceHome
    from edgepeft_runtime.train.records import Progress


def check_options(home: Path | None, state: Path | None, adapter: Path | None) -> None:
    """Either ``--home`` or ``--state`` must be there, or both; raises ``click.UsageError``."""
    if home is None and state is None:
        raise click.UsageError("Give --state, or --home on a device of a fleet.")
    if home is not None and adapter is not None:
        raise click.UsageError("Give either --adapter or --home, which has an adapter of its own.")


@dataclass(frozen=True)
class Part:
    """The adapter to start from and where to keep the run; alone, or as part of a fleet.

    Args:
        state: where the run is kept.
        adapter: what to start from, ``None``: the bundle's own.
        home: where the device keeps its place in a fleet, ``None``: it is in none.
        round: the round in use there.
    """

    state: Path
    adapter: Path | None = None
    home: DeviceHome | None = None
    round: Round | None = None

    @classmethod
    def of(cls, home: Path | None, state: Path | None, adapter: Path | None) -> Part:
        """Of the options of these names; counts a start in the home, so call it when training begins."""
        if home is None:
            return cls(state or Path(), adapter)
        from edgepeft_runtime.fleet.slots import DeviceHome

        device = DeviceHome(home)
        current = device.start()
        number = current.round.round
        click.echo(f"training from round {number} of {current.round.campaign}", err=True)
        return cls(state or device.run(number), current.adapter, device, current.round)

    def limited(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings of ``fit`` within the limits of the round."""
        most = None if self.round is None else self.round.limits.steps
        wanted = settings["max_steps"]
        if most is None:
            return settings
        return {**settings, "max_steps": most if wanted is None else min(most, wanted)}

    @contextmanager
    def judged(self) -> Iterator[None]:
        """The adapter is to blame for what ends in any way but well; not for the data, the state, or the user."""
        try:
            yield
        except (BatchError, DataError, StateError, KeyboardInterrupt):
            self._settle()
            raise
        self._settle()

    def watched(self, progress: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """``progress``, which also tells the home that the adapter makes good steps."""
        home = self.home
        if home is None:
            return progress
        settled = False

        def both(after: Progress) -> None:
            nonlocal settled
            settled = settled or home.settle()
            progress(after)

        return both

    def _settle(self) -> None:
        if self.home is not None:
            self.home.settle()
