"""``edgepeft doctor``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from edgepeft.cli.declared import SectionedCommand
from edgepeft.cli.method import METHOD, chosen_method, loaded_source, source_options
from edgepeft.cli.screen.output import json_option, write_json
from edgepeft.cli.screen.progress import Stages
from edgepeft.methods.registry import METHODS

if TYPE_CHECKING:
    from edgepeft.sources.source import Source

_SHOWN = 10


@click.command("doctor", cls=SectionedCommand)
@source_options
@click.option("--methods", "every_method", is_flag=True, help="List for every method whether it fits SOURCE.")
@json_option
def command(
    source: str,
    method: str | None,
    task: str | None,
    classes: tuple[str, ...] | None,
    outputs: tuple[str, ...] | None,
    loss: str | None,
    max_length: int | None,
    fixed_length: bool,
    seed: int,
    every_method: bool,
    as_json: bool,
    **settings: object,
) -> int:
    """Show what would be trained of SOURCE, and which operators block it, before any work.

    SOURCE is a Hugging Face model directory, a .gguf file, an .onnx file, or package.module:function (file.py:function)
    that returns a model and example inputs. The exit code is 1 if it cannot be prepared.
    """
    chosen, train = chosen_method(source, method, METHOD.given(settings))
    from edgepeft.preparation.options import Interface
    from edgepeft.preparation.prepare import doctor

    with Stages(silent=as_json) as stages:
        stages(f"loading {source}")
        loaded = loaded_source(
            source, task=task, classes=classes, max_length=max_length, fixed_length=fixed_length, seed=seed
        )
        if every_method:
            return _survey(loaded, as_json, stages)
        graph = Interface(outputs=outputs)
        diagnosis = doctor(loaded, method=chosen, loss=loss, trainable=train, interface=graph, on_progress=stages)
    if as_json:
        write_json(diagnosis)
        return int(bool(diagnosis.missing_rules))
    total = sum(math.prod(shape) for shape in diagnosis.trainable.values())
    click.echo(f"would train {total:,} elements in {len(diagnosis.trainable)} tensors:")
    for name, shape in list(diagnosis.trainable.items())[:_SHOWN]:
        click.echo(f"  {name} {list(shape)}")
    if len(diagnosis.trainable) > _SHOWN:
        click.echo(f"  … and {len(diagnosis.trainable) - _SHOWN} more")
    if not diagnosis.missing_rules:
        click.echo("every operator between them and the loss has a gradient rule, and a step runs: it can be prepared.")
        return 0
    click.echo(f"{len(diagnosis.missing_rules)} nodes between them and the loss have no gradient rule:")
    for missing in diagnosis.missing_rules:
        click.echo(f"  op {missing.op_type} (node {missing.node}) before {missing.target}")
    click.echo("freeze the parameters before them (--freeze), or express them by other operators.")
    return 1


def _survey(source: Source, as_json: bool, stages: Stages) -> int:
    from torch import nn

    from edgepeft.preparation.survey import survey

    files = [name for name, cls in METHODS.items() if cls.supports_onnx]
    if not isinstance(source.model, nn.Module):
        raise click.UsageError(
            f"--methods needs a torch model; an .onnx file supports --train, or the methods {', '.join(files)}."
        )
    stages("attaching each method")
    fits = list(survey(source.model))
    stages.end()
    if as_json:
        write_json(fits)
        return 0
    for fit in fits:
        click.echo(f"{fit.method:<10} " + (f"{fit.trainable:>12,}" if fit.reason is None else f"  {fit.reason}"))
    return 0
