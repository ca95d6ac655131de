"""``edgepeft pick``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.options import bundle_argument, data_options, run_options
from edgepeft.cli.screen.verbosity import say


@click.command("pick")
@bundle_argument
@data_options
@run_options
def command(
    bundle: Path, data: Path, text_column: tuple[str, ...], label_column: str, batch_size: int, threads: int | None
) -> None:
    """Choose the trainable elements of BUNDLE by the gradient on data, instead of leaving it to each device."""
    from edgepeft.data import load
    from edgepeft.preparation.picking import pick
    from edgepeft_runtime.bundle.bundle import Bundle
    from edgepeft_runtime.data.sources import source_of

    opened = Bundle.open(bundle)
    dataset = load(data, opened, text_column=text_column, label_column=label_column)
    pick(bundle, source_of(dataset, opened.manifest, batch_size).batches(0), threads=threads)
    say(f"{bundle}: picked; updates trained from it before are stale now")
