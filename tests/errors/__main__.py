"""Writes ``docs/ERRORS.md``."""

from __future__ import annotations

from tests.errors.page import PAGE, page

PAGE.write_text(page(), encoding="utf-8")
print(f"{PAGE.name} is written")
