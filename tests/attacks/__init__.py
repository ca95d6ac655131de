"""Attacks on a fleet, each carried out and refused; ``python -m tests.attacks`` writes ``docs/ATTACKS.md`` from them.

Who attacks: *anybody* may write to the remote where updates are left (a stick, a bucket), and has no key; *a device* is
registered, and signs whatever it likes; *a remote* serves devices whatever it likes, and has no key of the host.
"""

from tests.attacks import bundles, deliveries, files, remotes
from tests.attacks.table import IN_BUNDLE, ON_DEVICE, ON_HOST

__all__ = ["IN_BUNDLE", "ON_DEVICE", "ON_HOST", "bundles", "deliveries", "files", "remotes"]
