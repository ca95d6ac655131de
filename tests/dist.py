"""Run the README's Python with installed packages: ``python -m tests.dist DIST WORKSTATION_PYTHON DEVICE_PYTHON``.

The packages' files are looked at first: no tests, a license in each, source maps with their sources. The README's first
block runs on the workstation, the second one on the device, and the third one on the workstation again, in an empty
folder. The npm package is installed in another one, where the block for Node of its own README trains the golden bundle
on each package of ONNX Runtime; the device's Python trains the same, and the two updates have to agree.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
README, WEB, GOLDEN = ROOT / "README.md", ROOT / "runtimes" / "web", ROOT / "tests" / "golden"
ENGINES = ("onnxruntime-node", "onnxruntime-web/wasm")
AGREES = """
import sys
import numpy as np
from edgepeft_runtime import Bundle, Trainer, check_update, read_tensors, read_update

with Trainer.open("bundle") as trainer:
    trainer.fit(dict(read_tensors("data.safetensors").tensors), epochs=3)
    update = read_update("update.safetensors")
    check_update(update, trainer.bundle)
    start = Bundle.open("bundle").adapter()
    for name, own in trainer.parameters().items():
        np.testing.assert_allclose(update.parameters[name], own, rtol=1e-3, atol=1e-5, err_msg=name)
    moved = max(float(abs(array - start[name]).max()) for name, array in update.parameters.items())
    assert moved > 0.01, moved
    print(f"{sys.argv[1]}: {update.steps} steps, the update is that of Python's")
"""


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
        train_in_node(package, device, Path(folder))


def train_in_node(package: Path, device: Path, folder: Path) -> None:
    """Train the golden bundle with the npm package, by its README's block, and compare with Python."""
    locked = json.loads((WEB / "package-lock.json").read_text("utf-8"))["packages"]
    peers = [name.partition("/")[0] for name in ENGINES]
    pinned = [f"{name}@{locked[f'node_modules/{name}']['version']}" for name in peers]
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    run([*install, str(package.absolute()), *pinned], folder)
    shutil.copytree(GOLDEN / "bundle", folder / "bundle")
    shutil.copy(GOLDEN / "data.safetensors", folder)
    for engine in ENGINES:
        (folder / "train.mjs").write_text(node_block(engine), "utf-8")
        run(["node", "train.mjs"], folder)
        run([str(device.absolute()), "-I", "-c", AGREES, engine], folder)
        shutil.rmtree(folder / "state")


def node_block(engine: str = ENGINES[0]) -> str:
    """The block of the npm package's README that runs in Node, with a package of ONNX Runtime."""
    blocks = re.findall(r"```ts\n(.*?)```", (WEB / "README.md").read_text("utf-8"), flags=re.S)
    (block,) = (str(block) for block in blocks if ENGINES[0] in block)
    if engine == ENGINES[0]:
        return block
    imports, rest = block.split("\n\n", 1)  # as the README says
    return f"{imports.replace(ENGINES[0], engine)}\n\nort.env.wasm.numThreads = 1;\n{rest}"


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


def run(command: list[str], folder: str | Path) -> None:
    """Run a command in a folder."""
    done = subprocess.run(command, cwd=folder)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
