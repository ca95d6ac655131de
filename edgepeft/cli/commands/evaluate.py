"""``edgepeft evaluate``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from edgepeft.cli.options import (
    adapter_of,
    adapter_option,
    bundle_argument,
    data_options,
    json_option,
    run_options,
    template_option,
)
from edgepeft.cli.show import number, percent


@click.command("evaluate")
@bundle_argument
@data_options
@adapter_option
@run_options
@template_option
@json_option
def command(
    bundle: Path,
    data: Path,
    text_column: str,
    label_column: str,
    template: str | None,
    adapter: Path | None,
    batch_size: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Loss and, for classes, accuracy of BUNDLE on labelled data."""
    from edgepeft.data import load
    from edgepeft_runtime.bundle.bundle import Bundle
    from edgepeft_runtime.train.trainer import Trainer

    opened = Bundle.open(bundle)
    chosen = adapter_of(adapter, opened)
    dataset = load(data, opened, text_column=text_column, label_column=label_column, template=template)
    with Trainer.open(opened, adapter=chosen, threads=threads) as trainer:
        found = trainer.evaluate(dataset, batch_size=batch_size)
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    accuracy = "" if found.accuracy is None else f"  accuracy {percent(found.accuracy)}"
    click.echo(f"loss {number(found.loss)}{accuracy}  examples {found.examples}")
