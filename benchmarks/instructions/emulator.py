"""A board whose emulator counts instructions.

Debian's ``qemu-user`` of the suite that the emulated board comes from is a static program, which loads no plugin; the
one of Debian 12 is linked dynamically. It is unpacked beside the board with its libraries, and its own loader starts
it. It shows the guest the host's ``/proc/cpuinfo``, in which onnxruntime finds no processor of its kind and crashes:
the board's emulator writes the right one into the guest's root.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.aarch64.board import FOLDER, Board
from tests.aarch64.board import install as install_board
from tests.aarch64.debian import architecture, download, run, unpack

SUITE = "bookworm"
SOURCE = Path(__file__).with_name("counter.c")


def install(cpu: str, out: Path, folder: Path = FOLDER) -> Board:
    """Return the board. What is missing is downloaded and compiled first.

    Args:
        cpu: the board's processor.
        out: file that the counts of marks are written to.
        folder: of the board, and of this emulator beside it.

    Raises:
        Unavailable: this machine is no Debian, reaches no archive, or has no gcc.
    """
    folder = folder.resolve()
    board, emulator, plugin = install_board(cpu, folder), folder / "counter", folder / "counter.so"
    if not emulator.exists():
        _unpack_emulator(emulator)
    run(["gcc", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-o", plugin, SOURCE])
    loader = next(emulator.glob("lib64/ld-linux*.so.*"))
    libraries = ":".join(sorted({str(file.parent) for file in emulator.rglob("lib*.so.*")}))
    command = (loader, "--library-path", libraries, emulator / "usr" / "bin" / "qemu-aarch64")
    return Board(_with_cpuinfo(board), cpu, (*command, "-plugin", f"{plugin},out={out}"))


def _unpack_emulator(folder: Path) -> None:
    partial, work = folder.with_suffix(".partial"), folder.with_suffix(".apt")
    for old in (partial, work):
        shutil.rmtree(old, ignore_errors=True)
    for package in download([f"qemu-user:{architecture()}"], SUITE, work):
        unpack(package, partial)
    shutil.rmtree(work)
    partial.rename(folder)


def _with_cpuinfo(board: Board) -> Path:
    """A folder that refers to the board's files, with a ``/proc/cpuinfo`` in the root."""
    folder = board.folder / f"counter-{board.cpu}"
    shutil.rmtree(folder, ignore_errors=True)
    proc = folder / "root" / "proc"
    proc.mkdir(parents=True)
    for path in (board.folder / "root").iterdir():
        (folder / "root" / path.name).symlink_to(path)
    (folder / "wheels").symlink_to(board.folder / "wheels")
    read = "from pathlib import Path; print(Path('/proc/cpuinfo').read_text())"
    (proc / "cpuinfo").write_text(board.python("-c", read, cwd=folder), encoding="ascii")
    return folder
