"""The table of attacks: what, by whom, and the code it is refused with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.attacks.stage import Stage
from tests.fleet.fleets import NOW

ANYBODY, DEVICE, REMOTE = "anybody", "a device", "a remote"


@dataclass(frozen=True)
class Attack:
    """An attack: what it does, who does it, and the code it is refused with."""

    what: str
    who: str
    code: str
    act: Callable[[Stage], object]
    now: float = NOW + 60
    fetches: bool = False
    """Whether the device takes the bundle from the remote, too."""


ON_HOST: dict[str, Attack] = {}
ON_DEVICE: dict[str, Attack] = {}


def attack(
    what: str, who: str, code: str, **more: Any
) -> Callable[[Callable[[Stage], object]], Callable[[Stage], object]]:
    """Put a function into the table of its victim."""

    def add(act: Callable[[Stage], object]) -> Callable[[Stage], object]:
        table = ON_DEVICE if who == REMOTE else ON_HOST
        assert act.__name__ not in table
        table[act.__name__] = Attack(what, who, code, act, **more)
        return act

    return add


@dataclass(frozen=True)
class BundleAttack:
    """An attack by whoever wrote a bundle: what it does to one, and the code it is refused with."""

    what: str
    code: str
    act: Callable[[Path], object]


IN_BUNDLE: dict[str, BundleAttack] = {}


def bundle_attack(what: str, code: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Put a function into the table of what a bundle may hold."""

    def add(act: Callable[[Path], object]) -> Callable[[Path], object]:
        assert act.__name__ not in IN_BUNDLE
        IN_BUNDLE[act.__name__] = BundleAttack(what, code, act)
        return act

    return add
