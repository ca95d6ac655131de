"""The classes that are checked: one JSON object a line, with the fields of a case."""

from __future__ import annotations

import json
from pathlib import Path

from tests.architectures.configs import Case

_LINES = (Path(__file__).parent / "cases.jsonl").read_text("utf-8").splitlines()

CASES: tuple[Case, ...] = tuple(Case(**json.loads(line)) for line in _LINES)
