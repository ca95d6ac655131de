"""Debian packages of another release and another architecture, without installing any on this machine.

apt is given a state of its own: one suite, no package installed. So it works out all that a package needs and
downloads it; ``dpkg --extract`` unpacks it into a folder. None of it takes the rights of root.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Unavailable(Exception):
    """Something cannot be installed here; the message says why."""


def download(packages: Sequence[str], suite: str, folder: Path) -> list[Path]:
    """Download packages (``name:architecture``) of Debian's ``suite`` and all they depend on; returns the files.

    Raises:
        Unavailable: this machine has no apt, knows no archive of Debian, or does not reach it.
    """
    folder = folder.resolve()  # apt resolves relative paths against its own folders
    archives = folder / "archives"
    for made in (folder / "lists" / "partial", archives / "partial", folder / "sources"):
        made.mkdir(parents=True)
    (folder / "status").touch()
    architectures = list(dict.fromkeys(name.partition(":")[2] for name in packages))
    source = f"deb [arch={','.join(architectures)} signed-by={_keyring()}] {_archive()} {suite} main\n"
    (folder / "sources.list").write_text(source, encoding="utf-8")
    apt = ["apt-get", "--quiet", "--yes", *_options(folder, architectures)]
    run([*apt, "update"])
    run([*apt, "--no-install-recommends", "--download-only", "install", *packages])
    return sorted(archives.glob("*.deb"))


def unpack(package: Path, folder: Path) -> None:
    """The files of a package, below ``folder``; nothing of it is run."""
    run(["dpkg", "--extract", package, folder])


def architecture() -> str:
    """This machine's, as Debian calls it: ``amd64``, ``arm64``."""
    return run(["dpkg", "--print-architecture"]).strip()


def run(command: Sequence[str | Path]) -> str:
    """Return a tool's output; if it is missing or fails, the installation is impossible."""
    if shutil.which(str(command[0])) is None:
        raise Unavailable(f"{command[0]} is not on this machine")
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"{Path(command[0]).name} failed: {' '.join(done.stderr.split())[-400:]}")
    return done.stdout


def _options(folder: Path, architectures: Sequence[str]) -> list[str]:
    settings = {
        "APT::Architecture": architectures[0],
        "APT::Sandbox::User": "root",  # as who we are: apt's own user may not read this folder
        "Debug::NoLocking": "true",
        "Dir::Cache": folder,
        "Dir::Cache::archives": folder / "archives",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": folder / "sources",
        "Dir::State": folder,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
    }
    pairs = [*settings.items(), *(("APT::Architectures::", name) for name in architectures)]
    return [part for name, value in pairs for part in ("-o", f"{name}={value}")]


def _keyring() -> Path:
    if not KEYRING.is_file():
        raise Unavailable(f"{KEYRING} is not on this machine: it takes a Debian")
    return KEYRING


def _archive() -> str:
    """The archive of Debian that this machine is set up with."""
    printed = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"])
    for line in printed.splitlines():
        address, _, release = line.rpartition(" ")
        # There are also archives of updates and of other vendors.
        if address.rstrip("/").endswith("/debian") and "-" not in release:
            return address
    raise Unavailable("apt knows no archive of Debian")
