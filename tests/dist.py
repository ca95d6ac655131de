"""Run the README's Python with installed packages: ``python -m tests.dist DIST WORKSTATION_PYTHON DEVICE_PYTHON``.

The first block runs on the workstation, the second one on the device, and the third one on the workstation again, in an
empty folder. The npm package is installed in another one and imported by Node.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
IMPORT = "import { VERSION } from 'edgepeft-runtime'; console.log('edgepeft-runtime', VERSION);"


def main(dist: Path, workstation: Path, device: Path) -> None:
    """Run both parts; a failure ends with its exit code."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), flags=re.S)
    with tempfile.TemporaryDirectory() as folder:
        for python, block in zip((workstation, device, workstation), blocks, strict=True):
            # An absolute path without resolving links: the environment's python is a link to the system's.
            run([str(python.absolute()), "-I", "-c", f"import edgepeft\n{block}"], folder)
    (package,) = dist.glob("*.tgz")
    with tempfile.TemporaryDirectory() as folder:
        run(["npm", "install", "--no-audit", "--no-fund", "--silent", str(package.absolute())], folder)
        run(["node", "--input-type=module", "--eval", IMPORT], folder)


def run(command: list[str], folder: str) -> None:
    """Run a command in a folder."""
    done = subprocess.run(command, cwd=folder)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
