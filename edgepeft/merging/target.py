"""The interface of target formats, and the atomic publication of merged models."""

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
    """The input of a target format.

    Attributes:
        bundle: The bundle from which the update was trained.
        parameters: Parameters of the update, by name.
        calibration: Batches of inputs by which the result is compared with the device's outputs.
    """

    bundle: Bundle
    parameters: Mapping[str, Array]
    calibration: Sequence[Batch] | None = None


@dataclass(frozen=True)
class Target(Named):
    """A format that updates are merged to.

    A subclass is a frozen dataclass of its settings. Its file imports the libraries of the format inside ``write``, so
    that a workstation only needs the libraries of the formats it writes.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    """Allowed suffixes of the file; empty for a directory."""
    marker: ClassVar[str | None] = None
    """The file that identifies a directory of this format; ``None`` if the format is a file."""
    accepts_stacks: ClassVar[bool] = False
    """Whether pairs may have a higher rank than the bundle's."""

    @property
    def changes_outputs(self) -> bool:
        """Whether the result may differ from the device's outputs, so that calibration data is useful."""
        return False

    def check(self, out: Path, overwrite: bool) -> None:
        """Refuse an output that cannot be written, before any work is done."""
        check_target(out, self, overwrite)

    def write(self, merging: Merging, out: Path) -> str:
        """Write ``out``, and return a summary in one sentence."""
        raise NotImplementedError


def check_target(out: Path, target: Target, overwrite: bool) -> None:
    """Refuse a path of the wrong kind, or one that exists and must not be replaced."""
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
    """Rename a finished file to its final path, readable by all users."""
    staged.chmod(0o644)  # some libraries write files that only their owner can read
    replace_file(staged, out)
