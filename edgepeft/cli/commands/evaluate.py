"""``edgepeft evaluate``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from edgepeft.cli.options import (
    adapter_option,
    bundle_argument,
    data_options,
    run_options,
    template_option,
)
from edgepeft.cli.output import json_option
from edgepeft.cli.session import trainer_and_data
from edgepeft_runtime.figures import number, percent


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
    text_column: tuple[str, ...],
    label_column: str,
    template: str | None,
    adapter: Path | None,
    batch_size: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Print the loss of BUNDLE on labelled data and, for classes, the accuracy."""
    opening = trainer_and_data(
        bundle,
        data,
        adapter,
        text_column=text_column,
        label_column=label_column,
        template=template,
        threads=threads,
    )
    with opening as (trainer, dataset):
        evaluation = trainer.evaluate(dataset, batch_size=batch_size)
    if as_json:
        click.echo(json.dumps(asdict(evaluation)))
        return
    accuracy = "" if evaluation.accuracy is None else f"  accuracy {percent(evaluation.accuracy)}"
    click.echo(f"loss {number(evaluation.loss)}{accuracy}  examples {evaluation.examples}")
