"""Clean environments in which a page's own ``pip install`` was run, with the wheel instead of the source tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from tests.blocks.pages import ROOT

PRESENT = {
    ("edgepeft[device]",): "EDGEPEFT_DEVICE_PYTHON",
    ("edgepeft[device,text]",): "EDGEPEFT_DEVICE_PYTHON",
    ("edgepeft[fleet]",): "EDGEPEFT_FLEET_PYTHON",
}
"""The variables that name the environments of `make test`, for blocks that run in the present ones."""
NEWEST = ("3.14", "3.13", "3.12")


@dataclass
class Environments:
    """One environment for each list of requirements, made when it is first asked for.

    Attributes:
        python: the interpreter that they are made with, or ``None`` for the present environments.
        wheel: the wheel of edgepeft that is installed.
        folder: where they are made.
    """

    python: Path | None
    wheel: Path | None
    folder: Path
    _made: dict[tuple[str, ...], Path] = field(default_factory=dict)

    def programs(self, requirements: tuple[str, ...]) -> Path:
        """The folder of ``python`` and ``edgepeft``."""
        if self.python is None:
            return Path(os.environ.get(PRESENT.get(requirements, ""), "") or sys.executable).absolute().parent
        if requirements not in self._made:
            self._made[requirements] = self._make(requirements)
        return self._made[requirements]

    def variables(self, requirements: tuple[str, ...]) -> dict[str, str]:
        """The variables of a process that runs there: no path of this process's own but in its own environment."""
        kept = dict(os.environ) if self.python is None else {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        path = f"{self.programs(requirements)}{os.pathsep}{kept['PATH']}"
        return {**kept, "PATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

    def keep(self, requirements: Collection[tuple[str, ...]]) -> None:
        """Remove the other environments: one with PyTorch may have 5 GB."""
        for other in [made for made in self._made if made not in requirements]:
            shutil.rmtree(self._made.pop(other).parent)

    def _make(self, requirements: tuple[str, ...]) -> Path:
        environment = Path(tempfile.mkdtemp(prefix="environment-", dir=self.folder))
        subprocess.run([str(self.python), "-m", "venv", str(environment)], check=True)
        kinds = {"fleet": "fleet", "host": "workstation", "examples": "workstation"}
        kind = next((kind for extra, kind in kinds.items() if extra in " ".join(requirements)), "device")
        constraints = ROOT / "constraints" / f"{kind}.txt"
        named = [re.sub(r"^edgepeft", str(self.wheel), requirement) for requirement in requirements]
        programs = environment / "bin"
        pip = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check"]
        for command in (["install", "--quiet", "--constraint", str(constraints), *named], ["check"]):
            done = subprocess.run([*pip, *command], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"pip {' '.join(command)}\n{done.stdout}{done.stderr}")
        return programs


def build_wheel(folder: Path) -> Path:
    """Build the wheel that a release uploads."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)],
        check=True,
    )
    (wheel,) = folder.glob("edgepeft-*.whl")
    return wheel


def newest_python() -> Path | None:
    """The newest Python above 3.11 on this machine that can make an environment: on the path, or one of pyenv's."""
    for version in NEWEST:
        pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
        for candidate in (f"python{version}", *map(str, pyenv)):
            code = "import ensurepip, sys, venv; print(sys.executable)"
            try:
                done = subprocess.run([candidate, "-c", code], capture_output=True, text=True)
            except OSError:
                continue
            if done.returncode == 0:
                return Path(done.stdout.strip())
    return None
