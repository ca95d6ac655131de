"""Damaged bundles and files, and how tensors are compared to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgepeft_runtime.bundle.folder import listed
from edgepeft_runtime.bundle.manifest import Manifest


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one to three changes: flipped, cut, doubled, or swapped for a character that JSON cares about."""
    content = bytearray(whole)
    for _ in range(int(rng.integers(1, 4))):
        offset = int(rng.integers(0, max(1, min(len(content), 400))))
        match int(rng.integers(0, 5)):
            case 0:
                content[offset : offset + 1] = bytes([rng.integers(0, 256)])
            case 1:
                content[offset : offset + 1] = rng.choice(list(b'{}[],:"\\0129-e ')).tobytes()[:1]
            case 2:
                del content[offset:]
            case 3:
                del content[offset : offset + int(rng.integers(1, 5))]
            case _:
                content[offset:offset] = content[offset : offset + int(rng.integers(1, 9))]
    return bytes(content)


def rows(batch: dict[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
    """Some rows of a batch."""
    return {name: array[start:stop] for name, array in batch.items()}


def assert_equal_bits(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    """Equal names and equal bits."""
    assert {name: array.tobytes() for name, array in left.items()} == {name: a.tobytes() for name, a in right.items()}


Copy = Callable[[], Path]


def resigned(path: Path) -> Path:
    """Make the manifest agree with the files again, as a malicious author would."""
    manifest = Manifest.from_json((path / "manifest.json").read_bytes())
    files = {name: listed(path / name) for name in manifest.files}
    (path / "manifest.json").write_text(replace(manifest, files=files).to_json(), encoding="utf-8")
    return path
