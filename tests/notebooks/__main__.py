"""Run all notebooks, each in an empty folder, and store their outputs."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings

from tests.notebooks.cells import FOLDER, read, run, write

os.environ["MPLBACKEND"] = "agg"
warnings.simplefilter("ignore")
for path in sorted(FOLDER.glob("*.ipynb")):
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write(path, run(read(path)))
    print(path.name)
