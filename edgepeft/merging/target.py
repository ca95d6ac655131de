"""What a target format is, and where a merged model goes: never half-written, never over something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgepeft.errors import TargetExists, WrongSuffix
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.files.durable import check_output, replace_file, writing
from edgepeft_runtime.files.staging import check_folder, recover_directory
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.settings import Named


@dataclass(frozen=True)
class Merging:
    """What is written.

    Attributes:
        bundle: that the update was trained from.
        parameters: of the update, by name.
        calibration: batches of inputs by which the result is compared with the device's outputs.
    """

    bundle: Bundle
    parameters: Mapping[str, Array]
    calibration: Sequence[Batch] | None = None


@dataclass(frozen=True)
class Target(Named):
    """A format that updates are merged to.

    A subclass is a frozen dataclass of its settings. Its file imports the libraries of the format inside ``write``: a
    workstation needs those of the formats it writes only.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    """What the name of the file may end in; of a directory empty."""
    marker: ClassVar[str | None] = None
    """The file by which a directory of this format is known; of a file ``None``."""
    accepts_stacks: ClassVar[bool] = False
    """Whether pairs may have a higher rank than the bundle's."""

    @property
    def changes_outputs(self) -> bool:
        """Whether the result may differ from the device's outputs, so that calibration data is of use."""
        return False

    def check(self, out: Path, overwrite: bool) -> None:
        """Refuse a target that cannot be written, before any work is done."""
        check_target(out, self, overwrite)

    def write(self, merging: Merging, out: Path) -> str:
        """Write ``out``; returns what was done, in a sentence."""
        raise NotImplementedError


def check_target(out: Path, target: Target, overwrite: bool) -> None:
    """Refuse a path of the wrong kind, or one that is there and must not be replaced."""
    if target.suffixes and out.suffix not in target.suffixes:
        raise WrongSuffix(
            f"Cannot write the format {target.name!r} to {out}.",
            context=f"its suffix is {out.suffix or 'missing'!r}",
            hint=f"choose a file name that ends in {' or '.join(target.suffixes)}.",
        )
    with writing(out):
        recover_directory(out)
    marker = target.marker
    if marker is None:
        check_output(out)
    if not out.exists() or (marker is not None and out.is_dir() and not any(out.iterdir())):
        return
    if not (out.is_file() if marker is None else (out / marker).is_file()):
        raise TargetExists(
            f"{out} exists and is not {'a file' if marker is None else f'a directory with {marker}'}.",
            context=None,
            hint="choose a path that does not exist yet.",
        )
    if not overwrite:
        raise TargetExists(
            f"{out} exists.",
            context=None,
            hint="choose another path, or allow overwriting (--overwrite).",
        )
    if marker is not None:
        check_folder(out)


def publish(staged: Path, out: Path) -> None:
    """Rename a finished file to its place, readable for all."""
    staged.chmod(0o644)  # some libraries' files are for their owner only
    replace_file(staged, out)
