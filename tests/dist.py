"""Run the README's Python with installed packages: ``python -m tests.dist DIST WORKSTATION_PYTHON DEVICE_PYTHON``.

The packages' files are looked at first: no tests, a license in each, source maps with their sources. The README's first
block runs on the workstation, the second one on the device, and the third one on the workstation again, in an empty
folder. The npm package is installed in another one and imported by Node.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
IMPORT = "import { VERSION } from 'edgepeft-runtime'; console.log('edgepeft-runtime', VERSION);"


def main(dist: Path, workstation: Path, device: Path) -> None:
    """Run all parts; a failure ends with its exit code, or with what is wrong."""
    if wrong := [line for package in sorted(dist.iterdir()) for line in faults(files(package))]:
        sys.exit("\n".join(wrong))
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), flags=re.S)
    with tempfile.TemporaryDirectory() as folder:
        for python, block in zip((workstation, device, workstation), blocks, strict=True):
            # An absolute path without resolving links: the environment's python is a link to the system's.
            run([str(python.absolute()), "-I", "-c", f"import edgepeft\n{block}"], folder)
    (package,) = dist.glob("*.tgz")
    with tempfile.TemporaryDirectory() as folder:
        run(["npm", "install", "--no-audit", "--no-fund", "--silent", str(package.absolute())], folder)
        run(["node", "--input-type=module", "--eval", IMPORT], folder)


def files(package: Path) -> dict[str, bytes]:
    """The files of a wheel, a source archive or an npm package; of anything else none."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    if package.suffix not in (".gz", ".tgz"):
        return {}
    with tarfile.open(package) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        return {member.name: stream.read() for member in members if (stream := archive.extractfile(member))}


def faults(found: dict[str, bytes]) -> list[str]:
    """What a package contains that it should not, or lacks."""
    wrong = [f"{name} is a test" for name in found if re.search(r"(^|/)(tests?|golden|node_modules)/", name)]
    if found and not any(name.endswith("LICENSE") for name in found):
        wrong.append(f"{min(found)} comes without a LICENSE")
    for name, content in found.items():
        if name.endswith(".js") and f"{name}.map" not in found and b"sourceMappingURL" in content:
            wrong.append(f"{name} names a source map that is not there")
        if name.endswith(".map") and len((map_ := json.loads(content))["sources"]) != len(map_["sourcesContent"]):
            wrong.append(f"{name} has no source")
    if "package/package.json" in found and "package/dist/index.js" not in found:
        wrong.append("the npm package was not built")
    return wrong


def run(command: list[str], folder: str) -> None:
    """Run a command in a folder."""
    done = subprocess.run(command, cwd=folder)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
