"""``edgepeft merge``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.options import PATH, bundle_argument


@click.command("merge")
@bundle_argument
@click.argument("update", type=PATH)
@click.option("--to", type=click.Choice(["peft", "torch", "onnx"]), required=True, help="Format to write.")
@click.option("--out", type=PATH, required=True, help="A directory for peft, else a .pt, .safetensors or .onnx file.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
def command(bundle: Path, update: Path, to: str, out: Path, overwrite: bool) -> None:
    """Put UPDATE, which a device trained from BUNDLE, back into a model.

    peft: an adapter directory for PeftModel.from_pretrained. torch: a state dict of what trained. onnx: a model for
    inference.
    """
    from edgepeft.merging import merge

    merge(bundle, update, to=to, out=out, overwrite=overwrite, announce=lambda done: click.echo(f"{out}: {done}"))
