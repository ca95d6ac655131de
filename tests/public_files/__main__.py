"""Train ``.onnx`` files that PyPI and npm packages contain, and write the results.

``make nightly`` installs the packages into an environment of their own, and calls this. It fails where one is wrong.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from tests.public_files.catalog import PublicFile, read_files
from tests.public_files.check import RIGHT, WRONG, Outcome, check
from tests.public_files.page import PAGE, page


def _find(file: PublicFile, folder: Path) -> Path | None:
    """The file within an environment, whose npm packages are in ``node_modules``."""
    roots = [folder / "node_modules" / file.package, *folder.glob("lib/python*/site-packages")]
    return next((path for root in roots for path in root.glob(file.path)), None)


def _checked(file: PublicFile, path: Path | None) -> Outcome:
    if path is None:
        return Outcome(WRONG, f"{file.package} does not contain {file.path}")
    try:
        return check(file, path)
    except Exception as error:
        return Outcome(WRONG, f"{type(error).__name__}: {error}".splitlines()[0])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.public_files", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".venv-files"), help="Environment with the packages.")
    parser.add_argument("--page", type=Path, default=PAGE, help="Where the table is written.")
    parser.add_argument("--only", default="", help="Files with this in package or path; then nothing is written.")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for file in read_files():
        if options.only in f"{file.package}/{file.path}":
            outcome = _checked(file, _find(file, options.folder))
            rows.append((file, outcome))
            print(f"{file.package:24} {Path(file.path).name:36} {outcome}", flush=True)
            if not options.only:  # after each file, so that a run that is stopped leaves what it found
                options.page.write_text(page(rows), encoding="utf-8")
    right = sum(outcome.status == RIGHT for _, outcome in rows)
    print(f"{right} of {len(rows)} right")
    return int(any(outcome.status == WRONG for _, outcome in rows))


if __name__ == "__main__":
    sys.exit(main())
