"""Node and npm for the tests: packages are installed once per lock file, into ``node_modules`` next to it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
WEB = ROOT / "runtimes" / "web"
PAGE = ROOT / "examples" / "phone_browser"
LEAST_NODE = 20
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome", "chromium-browser")


def run(*command: str | Path, cwd: Path = WEB, timeout: float = 600) -> str:
    """The output of a command, which must succeed."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-6000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def require_node() -> None:
    """Skip where there is no Node of a version that the runtime supports."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip(f"node and npm are not installed: install Node {LEAST_NODE} or later.")
    version = run("node", "--version").strip()
    if int(version.removeprefix("v").split(".")[0]) < LEAST_NODE:
        pytest.skip(f"node is {version}: install Node {LEAST_NODE} or later.")


@functools.cache
def chromium() -> Path:
    """The browser to test with; ``EDGEPEFT_CHROMIUM`` names one that is not on the path."""
    names = [os.environ.get("EDGEPEFT_CHROMIUM", ""), *BROWSERS]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: install one of {', '.join(BROWSERS)}, or name it in EDGEPEFT_CHROMIUM.")
    return Path(found)


@functools.cache
def installed(folder: Path) -> Path:
    """Install the packages of a folder's lock file, unless they are installed."""
    require_node()
    lock = hashlib.sha256((folder / "package-lock.json").read_bytes()).hexdigest()
    stamp = folder / "node_modules" / ".edgepeft-lock"
    if not stamp.is_file() or stamp.read_text("utf-8") != lock:
        run("npm", "ci", "--no-audit", "--no-fund", cwd=folder)
        stamp.write_text(lock, "utf-8")
    return folder


@functools.cache
def runtime() -> Path:
    """The package ``edgepeft-runtime``, built, with its tests compiled: once for each state of its sources."""
    folder = installed(WEB)
    stamp, sources = folder / "build" / ".edgepeft-sources", _sources(folder)
    if not (folder / "dist").is_dir() or not stamp.is_file() or stamp.read_text("utf-8") != sources:
        run("npm", "run", "build")
        run("npx", "tsc", "-p", "test/tsconfig.json")
        stamp.write_text(sources, "utf-8")
    return folder


def _sources(folder: Path) -> str:
    """A digest of what the package is built from."""
    found = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("src/**/*"), *folder.glob("test/**/*")]):
        if path.is_file():
            found.update(f"{path.relative_to(folder)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return found.hexdigest()


def drive(plan: Mapping[str, Any], folder: Path, ort: str = "node") -> dict[str, Any]:
    """What Node makes of a plan: see ``runtimes/web/test/drive.ts``."""
    path = folder / "plan.json"
    path.write_text(json.dumps(plan, default=os.fspath), "utf-8")
    text = run("node", runtime() / "build" / "test" / "drive.js", path, ort)
    result: dict[str, Any] = json.loads(text) if text.strip() else {}
    return result


def browse(script: str, *arguments: object) -> dict[str, Any]:
    """What a script of ``runtimes/web/test/browser`` prints, with the browser as its first argument."""
    path = runtime() / "build" / "test" / "browser" / f"{script}.js"
    result: dict[str, Any] = json.loads(run("node", path, chromium(), *map(str, arguments)))
    return result
