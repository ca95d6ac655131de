"""``edgepeft profile``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.options import (
    adapter_of,
    adapter_option,
    bundle_argument,
    data_options,
    run_options,
    template_option,
)
from edgepeft.cli.paths import OUTPUT
from edgepeft.cli.screen.output import json_option, write_json
from edgepeft.cli.screen.verbosity import say
from edgepeft_runtime.files.durable import check_output, write_atomically


@click.command("profile")
@bundle_argument
@data_options
@adapter_option
@run_options
@template_option
@click.option("--steps", type=click.IntRange(1), default=10, show_default=True, help="Steps to measure.")
@click.option("--html", type=OUTPUT, metavar="FILE", help="Write a page with charts, which needs no other file.")
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
    steps: int,
    html: Path | None,
    as_json: bool,
) -> None:
    """Show where the time and the memory of BUNDLE's training steps on your data go, and what would help.

    Steps are measured twice: as they are, and with onnxruntime's profiler, which takes time itself. Nothing is trained.
    Batches are no larger than the bundle's memory budget allows.
    """
    from edgepeft.data import load
    from edgepeft_runtime.bundle.bundle import Bundle
    from edgepeft_runtime.profiling.profile import profile

    if html is not None:
        check_output(html)
    opened = Bundle.open(bundle)
    dataset = load(data, opened, text_column=text_column, label_column=label_column, template=template)
    memory = opened.manifest.memory
    most = None if memory is None else memory.micro_batch
    found = profile(
        opened,
        dataset,
        adapter=adapter_of(adapter, opened),
        batch_size=batch_size if most is None else min(batch_size, most),
        steps=steps,
        threads=threads,
    )
    if html is not None:
        write_atomically(html, [found.page().encode()])
    if as_json:
        write_json(found.to_dict())
        return
    click.echo(found.table())
    if html is not None:
        say(f"page: {html}")
