"""A disk that is full or broken, a kill and a power cut: no command loses anything (``docs/FAULTS.md``)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgepeft_runtime.files.durable import write_atomically
from tests.faults import injector
from tests.faults.powercut import BYTES_LOST, NAMES_LOST, Disk

needs_library = pytest.mark.skipif(injector.why_not() is not None, reason=injector.why_not() or "")

_SCRIPT = """
import os, sys
from pathlib import Path
from tests.faults import injector
from tests.test_faults import ACTS
root, act, kind, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
log = os.open(sys.argv[5], os.O_RDWR | os.O_CREAT)
injector.arm(root, kind, number, log)
ACTS[act](root)
injector.disarm()
"""


def _safely(root: Path) -> None:
    write_atomically(root / "file", [b"new", b" content"])


def _unsafely(root: Path) -> None:
    (root / "file.new").write_bytes(b"new content")
    os.replace(root / "file.new", root / "file")


ACTS: dict[str, Callable[[Path], None]] = {"safely": _safely, "unsafely": _unsafely}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return injector.build(tmp_path_factory.mktemp("library"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with an old file."""
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "file").write_bytes(b"old")
    return folder


def act(library: Path, root: Path, what: str, kind: int = 0, number: int = 0) -> subprocess.CompletedProcess[str]:
    """Something done in a process with the library, and a fault."""
    command = [sys.executable, "-c", _SCRIPT, str(root), what, str(kind), str(number), str(root.parent / "log")]
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@needs_library
def test_no_fault_at_any_tenth_point_loses_anything() -> None:
    """After a fault every command has done nothing or everything, prints an error, and then works."""
    from tests.faults.points import points

    found = points(every=10)
    failed = [f"{point.failure}: {point.command}, {point.kind}, {point.number}\n{point.detail}" for point in found]
    assert [text for text, point in zip(failed, found, strict=True) if point.failure] == []
    assert len(found) >= 500 and len({point.command for point in found}) >= 17


@needs_library
@pytest.mark.parametrize("kind", injector.KINDS)
def test_the_library_makes_each_kind_of_fault(library: Path, root: Path, kind: str) -> None:
    """The second operation, which writes, fails, is cut short or ends the process."""
    done = act(library, root, "unsafely", injector.KINDS[kind], 2)
    assert done.returncode == (-9 if "killed" in kind else 1), done.stderr
    if "killed" not in kind:
        assert ("Input/output" if "I/O" in kind else "No space left") in done.stderr
    written = {"killed after": 11, "cut short, then disk full": 5, "cut short, then killed": 5}.get(kind, 0)
    assert (root / "file.new").stat().st_size == written
    assert (root / "file").read_bytes() == b"old"


@needs_library
@pytest.mark.parametrize(("what", "safe"), [("safely", True), ("unsafely", False)])
def test_a_power_cut_shows_what_was_not_flushed(
    library: Path, root: Path, tmp_path: Path, what: str, safe: bool
) -> None:
    """A file that is renamed before it is flushed may be empty or missing; one written durably never is."""
    disk = Disk(root)
    assert act(library, root, what).returncode == 0
    found: dict[str, set[bytes]] = {NAMES_LOST: set(), BYTES_LOST: set()}
    operations = list(injector.operations((tmp_path / "log").read_bytes()))
    for number, operation in enumerate(operations):
        disk.apply(operation)
        for kind, contents in found.items():
            disk.write_to(tmp_path / f"{number}-{kind}", kind)
            contents.add((tmp_path / f"{number}-{kind}" / "file").read_bytes())
    last = (tmp_path / f"{len(operations) - 1}-{NAMES_LOST}" / "file").read_bytes()
    assert (last == b"new content") == safe
    assert found[NAMES_LOST] == ({b"old", b"new content"} if safe else {b"old"})
    assert found[BYTES_LOST] == ({b"old", b"new content"} if safe else {b"old", b""})
