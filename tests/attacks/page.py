"""``docs/ATTACKS.md``."""

from __future__ import annotations

from pathlib import Path

from tests.attacks.changes import MUTATED, MUTATIONS
from tests.attacks.table import IN_BUNDLE, ON_DEVICE, ON_HOST

PAGE = Path(__file__).parents[2] / "docs" / "ATTACKS.md"


def page() -> str:
    """The text of ``docs/ATTACKS.md``."""
    lines = [
        "# Attacks on a fleet, and the code each is refused with",
        "",
        "Written by `python -m tests.attacks`; `tests/test_attacks.py` carries out every line. Each attack is refused",
        "with this code and no other, it lies in quarantine with its reason, what had been accepted is unchanged to",
        "the byte, and no file is written anywhere else.",
        "",
        "*Anybody* may write to the place where updates are left, and has no key. *A device* is registered and signs",
        "whatever it likes. *A place* gives devices what it likes, without the host's key.",
        "",
        "## On the host",
        "",
        "| attack | by | refused with |",
        "|---|---|---|",
        *(f"| {one.what} | {one.who} | `{one.code}` |" for one in ON_HOST.values()),
        "",
        "The same delivery a second time is no attack: nothing happens. After `equivocation` the device is blocked",
        "until `edgepeft keys restore`.",
        "",
        "## On devices",
        "",
        "| attack | refused with |",
        "|---|---|",
        *(f"| {one.what} | `{one.code}` |" for one in ON_DEVICE.values()),
        "",
        "The device goes on with the adapter it has.",
        "",
        "## In a bundle",
        "",
        "By whoever wrote it, with hashes that fit. Refused when it is opened, by every runtime.",
        "",
        "| attack | refused with |",
        "|---|---|",
        *(f"| {one.what} | `{one.code}` |" for one in IN_BUNDLE.values()),
        "",
        f"## At random, {MUTATIONS:,} times each",
        "",
        "| changed | result |",
        "|---|---|",
        *(f"| {what} | {result} |" for what, result in MUTATED.items()),
        "",
        "## What is not defended against",
        "",
        "A registered device may train on whatever it likes within the norm: that is for the rule of aggregation. Who",
        "has the host's key is the host. A device with several registrations counts several times.",
    ]
    return "\n".join(lines) + "\n"
