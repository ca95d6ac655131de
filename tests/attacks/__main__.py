"""Writes ``docs/ATTACKS.md``."""

from __future__ import annotations

from tests.attacks import IN_BUNDLE, ON_DEVICE, ON_HOST
from tests.attacks.page import PAGE, page

PAGE.write_text(page(), encoding="utf-8")
print(f"{len(ON_HOST)} attacks on the host, {len(ON_DEVICE)} on devices, {len(IN_BUNDLE)} in bundles: {PAGE.name}")
