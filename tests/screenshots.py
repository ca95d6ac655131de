"""Take the screenshots of the documentation: ``python -m tests.screenshots [--phone]``.

A project of ``edgepeft new`` is prepared and trained, and the pages of ``edgepeft report`` and ``edgepeft profile`` are
opened in Chromium. With ``--phone``, the tests of the phone page run as well, and a picture of it is kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.web.toolchain import chromium

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
BROWSER = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")
LARGEST = 150_000
"""Bytes of a picture."""
PHONE = {"whole": "phone_drawings"}
"""Names of the test's pictures, and of the documentation's."""
WINDOW = (390, 1105)
"""The part of a phone's page that is kept, in points: all but its list of examples."""


def pages(folder: Path) -> dict[str, Path]:
    """Train a project of images, and write the pages of its report and of its profile."""
    project = folder / "digits"
    edgepeft = (sys.executable, "-m", "edgepeft")
    _run(*edgepeft, "new", "image", project, cwd=folder)
    for script in ("prepare.py", "train.py"):
        _run(sys.executable, script, cwd=project)
    data = ("--data", "held_out")
    _run(*edgepeft, "report", "run", "--bundle", "bundle", *data, "--html", "report.html", cwd=project)
    _run(*edgepeft, "profile", "bundle", *data, "--steps", "20", "--html", "profile.html", cwd=project)
    return {name: project / f"{name}.html" for name in ("report", "profile")}


def shoot(page: Path, width: int, height: int, out: Path) -> None:
    """Take a picture of a page in a window of this size."""
    shot = out.with_suffix(".whole.png")
    _run(
        chromium(), *BROWSER, f"--window-size={width},{height}", f"--screenshot={shot}", page.as_uri(), cwd=page.parent
    )
    keep(shot, out)
    shot.unlink()


def keep(shot: Path, out: Path, size: tuple[int, int] | None = None) -> None:
    """Write a picture, or its upper part in this size, with 256 colours if it is larger than 150 kB."""
    with Image.open(shot) as opened:
        picture = opened.convert("RGB")
    if size is not None:
        height = min(picture.height, size[1] * picture.width // size[0])
        picture = picture.crop((0, 0, picture.width, height)).resize((size[0], height * size[0] // picture.width))
    picture.save(out, optimize=True)
    if out.stat().st_size > LARGEST:
        picture.quantize(256).save(out, optimize=True)
    print(out, f"{out.stat().st_size / 1e3:.0f} kB", flush=True)


def _run(*command: object, cwd: Path) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Take all of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.screenshots", description=__doc__)
    parser.add_argument("--phone", action="store_true", help="the phone page too: minutes")
    options = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for page, path in pages(folder).items():
            shoot(path, 900, 1200, PICTURES / f"{page}.png")
        if options.phone:
            test = ("tests/web/test_phone_page.py", "-m", "slow", "--basetemp", folder / "phone")
            _run(sys.executable, "-m", "pytest", *test, cwd=ROOT)
            for shot, kept in PHONE.items():
                (found,) = (folder / "phone").rglob(f"{shot}.png")
                keep(found, PICTURES / f"{kept}.png", WINDOW)


if __name__ == "__main__":
    main()
