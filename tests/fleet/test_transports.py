"""What every transport does, whatever is behind it; a new one is a line in ``REMOTES``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgepeft.sync.transports import FsspecTransport, HostFolder
from edgepeft_runtime.fleet.transports.folder import FolderTransport
from edgepeft_runtime.fleet.transports.transport import Transport, fetch, read
from tests.fleet.fleets import code_of

REMOTES: dict[str, Callable[[Path], Transport]] = {
    "folder": FolderTransport,
    "host-folder": HostFolder,
    "fsspec": lambda folder: FsspecTransport(f"memory://{folder}"),
}
"""Each makes the transport to an empty remote, which may use a folder of its own."""


@pytest.mark.parametrize("name", REMOTES)
def test_transports_keep_what_the_protocol_says(name: str, tmp_path: Path) -> None:
    """Files are written whole, read from a position, resumed where a copy ended, and missing or too large by a code."""
    transport = REMOTES[name](tmp_path)
    for content in (b"older", b"0123456789"):
        transport.put("inbox/file", content)
    assert read(transport, "inbox/file", 10) == b"0123456789"
    with transport.open("inbox/file", 4) as stream:
        assert (stream.file.read(), stream.size) == (b"0123456789"[stream.start :], 10)
    (tmp_path / "copy").write_bytes(b"0123")
    fetch(transport, "inbox/file", tmp_path / "copy", 10)
    assert (tmp_path / "copy").read_bytes() == b"0123456789"
    assert code_of(read, transport, "inbox/file", 9) == "too-large"
    assert code_of(read, transport, "missing", 9) == "no-such-file"
    transport.close()
