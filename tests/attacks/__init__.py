"""Attacks on a fleet, each carried out and refused; ``python -m tests.attacks`` writes ``docs/ATTACKS.md`` from them.

Who attacks: *anybody* may write to the place where updates are left (a stick, a bucket), and has no key; *a device* is
registered, and signs whatever it likes; *a place* gives devices what it likes, and has no key of the host.
"""

from tests.attacks import deliveries, files, places
from tests.attacks.table import ON_DEVICE, ON_HOST

__all__ = ["ON_DEVICE", "ON_HOST", "deliveries", "files", "places"]
