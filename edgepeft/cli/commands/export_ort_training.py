"""``edgepeft export-ort-training``, and its options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepeft.cli.choice import Choice
from edgepeft.cli.declared import F
from edgepeft.cli.options import bundle_argument
from edgepeft.cli.paths import PATH
from edgepeft.cli.screen.verbosity import say
from edgepeft_runtime.figures import size

if TYPE_CHECKING:
    from edgepeft_export.ort_training import OrtTraining


def gradient_options(command: F) -> F:
    """Add ``--gradient`` and ``--training-python``, for the official artifacts."""
    for option in (
        click.option(
            "--training-python", type=PATH, help="Python with edgepeft[ort-training], for --gradient official."
        ),
        click.option(
            "--gradient",
            type=Choice(["own", "official"]),
            help="Source of the gradient graph; official is ONNX Runtime's own tool.  [default: own]",
        ),
    ):
        command = option(command)
    return command


def ort_training(gradient: str | None, training_python: Path | None) -> OrtTraining:
    """Return the settings of the official artifacts."""
    from edgepeft_export.ort_training import OrtTraining

    return OrtTraining(gradient or "own", training_python)


@click.command("export-ort-training")
@bundle_argument
@gradient_options
def command(bundle: Path, gradient: str | None, training_python: Path | None) -> None:
    """Add to BUNDLE the artifacts for the training builds of ONNX Runtime 1.19, which also run on phones.

    They are written to BUNDLE/ort_training. `edgepeft pull` accepts the checkpoints that devices send back.
    """
    from edgepeft_export.ort_training import export_ort_training

    folder = export_ort_training(bundle, ort_training(gradient, training_python))
    for file in sorted(folder.iterdir()):
        say(f"{file}: {size(file.stat().st_size)}")
