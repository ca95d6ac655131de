"""Write a project: the scripts of its kind, and sample data."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgepeft.errors import TargetExists
from edgepeft.projects import samples
from edgepeft_runtime.files.durable import writing

KINDS = {"text": samples.write_texts, "image": samples.write_images, "table": samples.write_rows}
"""The functions that write the sample data of each kind."""

_TEMPLATES = Path(__file__).parent


def create(kind: str, folder: str | Path) -> list[str]:
    """Write the project of a kind to a new folder, and return the names of its files and folders.

    Raises:
        TargetExists: The folder exists and is not empty.
        CannotWriteFile: It cannot be written.
    """
    folder = Path(folder)
    with writing(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TargetExists(f"{folder} exists.", context=None, hint="choose a new folder, or an empty one.")
        folder.mkdir(parents=True, exist_ok=True)
        for template in sorted((_TEMPLATES / kind).iterdir()):
            if template.is_file():
                shutil.copyfile(template, folder / template.name)
        KINDS[kind](folder)
    return sorted(path.name for path in folder.iterdir())
