"""``edgepeft merge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepeft.cli.options import PATH, bundle_argument, column_options

if TYPE_CHECKING:
    from edgepeft_runtime.bundle.bundle import Bundle
    from edgepeft_runtime.data.batch import Batch

_FORMATS = ["peft", "torch", "onnx", "onnx-adapter"]
_EXAMPLES, _ROWS = 64, 8
"""How many examples a merged model is compared on, and how many at a time."""


@click.command("merge")
@bundle_argument
@click.argument("update", type=PATH)
@click.option("--to", type=click.Choice(_FORMATS), required=True, help="Format to write.")
@click.option(
    "--out",
    type=PATH,
    required=True,
    help="A directory for peft, else a .pt, .safetensors, .onnx or .onnx_adapter file.",
)
@click.option("--adapter", type=PATH, help="What the device started from, if not the bundle's own: an earlier round.")
@click.option("--unpack", "packed", flag_value="unpack", help="onnx: packed weights become fp32, with pairs folded in.")
@click.option(
    "--requantize",
    "packed",
    flag_value="requantize",
    help="onnx: packed weights are rounded again, with pairs in them.",
)
@click.option("--data", type=PATH, help="Data by which --unpack and --requantize are compared with the device.")
@column_options
@click.option("--base", type=PATH, help="onnx-adapter: also write the graph it is put on, as Python wants it.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
def command(
    bundle: Path,
    update: Path,
    to: str,
    out: Path,
    adapter: Path | None,
    packed: str | None,
    data: Path | None,
    text_column: str,
    label_column: str,
    base: Path | None,
    overwrite: bool,
) -> None:
    """Put UPDATE, which a device trained from BUNDLE or aggregate made of many, back into a model.

    peft: an adapter directory for PeftModel.from_pretrained. torch: a state dict of what trained. onnx: a model for
    inference. onnx-adapter: a file that onnxruntime.LoraAdapter puts on infer.onnx.
    """
    from edgepeft.merging import merge
    from edgepeft_runtime.bundle.bundle import Bundle

    if data is not None and packed is None:
        raise click.UsageError("--data goes with --unpack or --requantize.")
    opened = Bundle.open(bundle)
    merge(
        opened,
        update,
        to=to,
        out=out,
        adapter=adapter,
        packed=packed or "keep",
        calibration=None if data is None else _batches(data, opened, text_column, label_column),
        base=base,
        overwrite=overwrite,
        announce=lambda done: click.echo(f"{out}: {done}"),
    )


def _batches(data: Path, bundle: Bundle, text_column: str, label_column: str) -> list[Batch]:
    """Batches of inputs, taken evenly from all of the data."""
    import numpy as np

    from edgepeft.data import load

    found = load(data, bundle, text_column=text_column, label_column=label_column, labelled=False)
    chosen = np.linspace(0, len(found) - 1, min(_EXAMPLES, len(found))).astype(np.int64)
    return [found.batch(rows) for rows in np.array_split(chosen, -(-len(chosen) // _ROWS))]
