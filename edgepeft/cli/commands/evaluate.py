"""``edgepeft evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.options import (
    adapter_option,
    bundle_argument,
    data_options,
    metrics_option,
    run_options,
    template_option,
)
from edgepeft.cli.screen.output import json_option, write_json
from edgepeft.cli.session import trainer_and_data
from edgepeft_runtime.figures import number, percent


@click.command("evaluate")
@bundle_argument
@data_options
@adapter_option
@run_options
@template_option
@metrics_option
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
    metrics: tuple[str, ...],
    as_json: bool,
) -> None:
    """Print the loss of BUNDLE on labelled data, the accuracy if labels are classes, and further metrics."""
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
        evaluation = trainer.evaluate(dataset, batch_size, metrics)
    if as_json:
        write_json(evaluation)
        return
    accuracy = "" if evaluation.accuracy is None else f"  accuracy {percent(evaluation.accuracy)}"
    click.echo(f"loss {number(evaluation.loss)}{accuracy}  examples {evaluation.examples}")
    for name, score in evaluation.metrics.items():
        click.echo(f"{name} {number(score.value)}")
        for part, value in score.parts.items():
            click.echo(f"  {part} {number(value)}")
        if score.matrix is not None:
            _print_matrix(score.matrix, score.names)


def _print_matrix(matrix: tuple[tuple[int, ...], ...], names: tuple[str, ...]) -> None:
    """Print counts by true class (rows) and predicted class (columns)."""
    rows = [["true \\ predicted", *names], *([name, *map(str, row)] for name, row in zip(names, matrix, strict=True))]
    first, width = (max(len(row[0]) for row in rows), max(len(cell) for row in rows for cell in row[1:]) + 2)
    for row in rows:
        click.echo("  " + row[0].ljust(first) + "".join(cell.rjust(width) for cell in row[1:]))
