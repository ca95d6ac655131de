"""``edgepeft report``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.options import column_options, template_option
from edgepeft.cli.paths import OUTPUT, PATH
from edgepeft.cli.screen.output import json_option, write_json
from edgepeft.cli.screen.verbosity import say
from edgepeft_runtime.figures import number
from edgepeft_runtime.files.durable import check_output, write_atomically


@click.command("report")
@click.argument("state", type=PATH)
@click.option("--html", type=OUTPUT, metavar="FILE", help="Write a page with curves, which needs no other file.")
@click.option("--bundle", type=PATH, help="Bundle of the run: what was trained, frozen and kept.")
@click.option("--data", type=PATH, help="Labelled data to evaluate the run's adapter on; needs --bundle.")
@column_options
@template_option
@click.option(
    "--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Examples per batch of --data."
)
@click.option("--profile", "steps", type=click.IntRange(1), help="Measure so many training steps on --data.")
@json_option
def command(
    state: Path,
    html: Path | None,
    bundle: Path | None,
    data: Path | None,
    text_column: tuple[str, ...],
    label_column: str,
    template: str | None,
    batch_size: int,
    steps: int | None,
    as_json: bool,
) -> None:
    """Report on the run in STATE: the losses and metrics of its epochs, its settings, and what was kept.

    With --bundle and --data, also a confusion matrix on that data and, with --profile, time by layer and memory.
    """
    if data is not None and bundle is None:
        raise click.UsageError("--data needs --bundle.")
    if steps is not None and data is None:
        raise click.UsageError("--profile needs --data.")
    from edgepeft.data import load
    from edgepeft.report import report
    from edgepeft_runtime.bundle.bundle import Bundle

    if html is not None:
        check_output(html)
    opened = None if bundle is None else Bundle.open(bundle)
    dataset = None
    if data is not None and opened is not None:
        dataset = load(data, opened, text_column=text_column, label_column=label_column, template=template)
    found = report(state, opened, dataset, batch_size=batch_size, profile_steps=steps or 0)
    if html is not None:
        write_atomically(html, [found.page().encode()])
    if as_json:
        profile = None if found.profile is None else found.profile.to_dict()
        write_json({"run": found.run, "evaluation": found.evaluation, "profile": profile})
        return
    for fit in found.run.fits:
        done = fit.report()
        for row, record in enumerate(done.history):
            figures = "".join(f"  {name} {number(values[row])}" for name, values in done.curves().items())
            click.echo(f"epoch {record.epoch}  step {record.step}{figures}{'  <- kept' if record == done.best else ''}")
        click.echo(f"{done.steps} steps, {done.examples} examples, stopped by {done.stopped or 'nothing yet'}")
    if html is not None:
        say(f"page: {html}")
