"""The table of attacks: each with its attacker and the code of its refusal."""

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
    """An attack: its description, its attacker, and the code of its refusal."""

    what: str
    who: str
    code: str
    act: Callable[[Stage], object]
    now: float = NOW + 60
    fetches: bool = False
    """Whether the device also fetches the bundle from the remote."""


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
    """An attack by the author of a bundle: its change of the bundle, and the code of its refusal."""

    what: str
    code: str
    act: Callable[[Path], object]


IN_BUNDLE: dict[str, BundleAttack] = {}


def bundle_attack(what: str, code: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Add a function to the table of attacks by bundles."""

    def add(act: Callable[[Path], object]) -> Callable[[Path], object]:
        assert act.__name__ not in IN_BUNDLE
        IN_BUNDLE[act.__name__] = BundleAttack(what, code, act)
        return act

    return add
