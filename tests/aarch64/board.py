"""An emulated Raspberry Pi: Debian's Python for arm64 and stock aarch64 wheels, run by QEMU's user-mode emulator.

Raspberry Pi OS takes these packages from Debian. All is unpacked into one folder that git ignores, once: about 160 MB
of downloads, 250 MB on the disk. Nothing is installed on the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.aarch64.debian import architecture, download, run, unpack

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / ".aarch64"
CONSTRAINTS = ROOT / "constraints" / "device.txt"
SUITE = "trixie"
EMULATOR = "qemu-user"
PACKAGES = ("python3:arm64", "libstdc++6:arm64")
PLATFORMS = ("manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, 37)))
"""The platform tag of wheels for Raspberry Pi OS since Debian 12, with C library 2.36."""

PACKAGES_OF_OURS = (ROOT, ROOT / "runtimes" / "python")

CPUS = {"cortex-a72": "Raspberry Pi 4", "cortex-a76": "Raspberry Pi 5"}
"""Only the second has instructions for dot products of 8-bit integers, so onnxruntime runs other code on it."""


@dataclass(frozen=True)
class Board:
    """An installed root with a processor; make one with ``install``.

    Attributes:
        emulator: the command of another emulator than its own.
    """

    folder: Path
    cpu: str
    emulator: tuple[Path | str, ...] = ()

    def python(self, *arguments: object, cwd: Path, path: Iterable[Path] = PACKAGES_OF_OURS) -> str:
        """Run Python on it, with the wheels and ``path``; returns what was printed, as ``python`` does."""
        root = self.folder / "root"
        emulator = [*(self.emulator or [self.folder / "qemu-aarch64"]), "-cpu", self.cpu, "-L", root]
        interpreter = root / "usr" / "bin" / f"python{_release(root)}"
        return python([*emulator, interpreter], arguments, cwd, (self.folder / "wheels", *path))


def python(
    interpreter: Iterable[object], arguments: Iterable[object], cwd: Path, path: Iterable[Path] = PACKAGES_OF_OURS
) -> str:
    """Return the output of another Python, without this one's packages.

    Raises:
        RuntimeError: it failed; the message is what it wrote to standard error.
    """
    command = [*map(str, interpreter), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EDGEPEFT"))}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    environment["PYTHONPYCACHEPREFIX"] = str(FOLDER / "bytecode")  # compiling is slow in an emulator
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def install(cpu: str, folder: Path = FOLDER) -> Board:
    """Return the board. Missing parts are downloaded first, and stored for the next time.

    Raises:
        Unavailable: the packages or the wheels cannot be had on this machine.
    """
    folder = folder.resolve()
    recipe = json.dumps({"suite": SUITE, "packages": [EMULATOR, *PACKAGES], "wheels": _wheels()})
    stamp = folder / "recipe.json"
    if not stamp.is_file() or stamp.read_text("utf-8") != recipe:
        partial = folder.with_name(f"{folder.name}.partial")
        for old in (partial, folder):
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True)
        _install_packages(partial)
        _install_wheels(partial)
        (partial / stamp.name).write_text(recipe, encoding="utf-8")
        partial.rename(folder)
    return Board(folder, cpu)


def _install_packages(folder: Path) -> None:
    emulator = f"{EMULATOR}:{architecture()}"
    work, unpacked, root = folder / "apt", folder / "emulator", folder / "root"
    for package in download([*PACKAGES, emulator], SUITE, work):
        if package.name.startswith(EMULATOR):
            unpack(package, unpacked)
        elif package.name.endswith(("_arm64.deb", "_all.deb")):
            unpack(package, root)
    (root / "lib").symlink_to("usr/lib")  # as every Debian has it, by a package that only a whole system needs
    # The package has an emulator for each of two dozen processors, a program that needs nothing else.
    (unpacked / "usr" / "bin" / "qemu-aarch64").rename(folder / "qemu-aarch64")
    for used in (work, unpacked):
        shutil.rmtree(used)


def _install_wheels(folder: Path) -> None:
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    release = ["--python-version", _release(folder / "root"), "--implementation", "cp", "--only-binary=:all:"]
    run([*pip, *platforms, *release, "--target", folder / "wheels", "--no-deps", *_wheels()])


def _wheels() -> list[str]:
    """The packages of ``edgepeft[device,text]`` on a device, in the versions that are tested here."""
    return CONSTRAINTS.read_text("utf-8").split()


def _release(root: Path) -> str:
    """The version of the root's Python: ``3.13``."""
    (library,) = (root / "usr" / "lib").glob("python3.*")
    return library.name.removeprefix("python")
