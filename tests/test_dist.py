"""What a release uploads is looked at before it is installed."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

from tests.dist import faults, files, node_block

MAP = json.dumps({"sources": ["../src/index.ts"], "sourcesContent": ["export {};"]}).encode()
GOOD = {
    "package/LICENSE": b"",
    "package/package.json": b"{}",
    "package/dist/index.js": b"//# sourceMappingURL=index.js.map",
    "package/dist/index.js.map": MAP,
}


def test_a_complete_package_has_no_faults() -> None:
    """It was built, with a license and the sources of its maps."""
    assert faults(GOOD) == [] and faults({}) == []


def test_each_fault_is_named() -> None:
    """Tests, no license, maps that are missing or without sources, and a package that was never built."""
    assert faults({**GOOD, "package/test/a.js": b""}) == ["package/test/a.js is a test"]
    lacking = {name: data for name, data in GOOD.items() if "LICENSE" not in name}
    assert faults(lacking) == ["package/dist/index.js comes without a LICENSE"]
    lacking = {name: data for name, data in GOOD.items() if not name.endswith(".map")}
    assert faults(lacking) == ["package/dist/index.js names a source map that is not there"]
    empty = json.dumps({"sources": ["../src/index.ts"], "sourcesContent": []}).encode()
    assert faults({**GOOD, "package/dist/index.js.map": empty}) == ["package/dist/index.js.map has no source"]
    unbuilt = {name: data for name, data in GOOD.items() if "/dist/" not in name}
    assert faults(unbuilt) == ["the npm package was not built"]


def test_both_kinds_of_archives_are_read(tmp_path: Path) -> None:
    """The files of a wheel and of an archive by their names; a bill of materials has none."""
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("a/b.py", "x = 1")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("a/b.py")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"x = 1"))
    (tmp_path / "a.cdx.json").write_text("{}")
    assert files(tmp_path / "a.whl") == files(tmp_path / "a.tar.gz") == {"a/b.py": b"x = 1"}
    assert files(tmp_path / "a.cdx.json") == {}


def test_the_block_for_node_trains_and_writes_an_update() -> None:
    """It is one block of the npm package's README, whole: it needs no name from another one."""
    block = node_block()
    assert block.startswith("import ") and "trainer.fit(" in block and '"update.safetensors"' in block
