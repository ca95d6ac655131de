"""``edgepeft merge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepeft.cli.choice import Choice
from edgepeft.cli.declared import Declared, SectionedCommand, summary
from edgepeft.cli.options import bundle_argument, column_options
from edgepeft.cli.paths import OUTPUT, PATH
from edgepeft.cli.screen.output import json_option, write_json
from edgepeft.cli.screen.verbosity import say
from edgepeft.merging.registry import TARGETS

if TYPE_CHECKING:
    from edgepeft_runtime.bundle.bundle import Bundle
    from edgepeft_runtime.data.batch import Batch

FORMAT = Declared(TARGETS)
_FORMATS = "Format to write. " + " ".join(f"{name}: {summary(cls)}" for name, cls in TARGETS.items())
_EXAMPLES, _ROWS = 64, 8
"""Number of examples to compare a merged model on, and batch size."""


@click.command("merge", cls=SectionedCommand)
@bundle_argument
@click.argument("update", type=PATH)
@click.option("--to", type=Choice(list(TARGETS)), required=True, help=_FORMATS)
@click.option("--out", type=OUTPUT, required=True, help="File or directory to write.")
@FORMAT.settings
@click.option("--adapter", type=PATH, help="Adapter of an earlier round that the device started from.")
@click.option("--data", type=PATH, help="Data on which changed quantized weights are compared with the device.")
@column_options
@click.option("--overwrite", is_flag=True, help="Replace an existing target.")
@json_option
def command(
    bundle: Path,
    update: Path,
    to: str,
    out: Path,
    adapter: Path | None,
    data: Path | None,
    text_column: tuple[str, ...],
    label_column: str,
    overwrite: bool,
    as_json: bool,
    **settings: object,
) -> None:
    """Merge UPDATE, which a device trained from BUNDLE or `edgepeft aggregate` wrote, into a model."""
    from edgepeft.merging import merge
    from edgepeft_runtime.bundle.bundle import Bundle

    target = FORMAT.make(to, FORMAT.given(settings))
    opened, notes = Bundle.open(bundle), list[str]()
    merge(
        opened,
        update,
        to=target,
        out=out,
        adapter=adapter,
        calibration=None if data is None else _batches(data, opened, text_column, label_column),
        overwrite=overwrite,
        on_progress=notes.append if as_json else lambda text: say(f"{out}: {text}"),
    )
    if as_json:
        write_json({"format": to, "out": out, "notes": notes})


def _batches(data: Path, bundle: Bundle, text_column: tuple[str, ...], label_column: str) -> list[Batch]:
    """Return batches of inputs, sampled evenly from all of the data."""
    import numpy as np

    from edgepeft.data import load

    dataset = load(data, bundle, text_column=text_column, label_column=label_column, labelled=False)
    chosen = np.linspace(0, len(dataset) - 1, min(_EXAMPLES, len(dataset))).astype(np.int64)
    return [dataset.batch(rows) for rows in np.array_split(chosen, -(-len(chosen) // _ROWS))]
