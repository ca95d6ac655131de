"""``edgepeft predict``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from edgepeft.cli.answers import answers
from edgepeft.cli.options import (
    adapter_option,
    bundle_argument,
    data_options,
    run_options,
    template_option,
)
from edgepeft.cli.paths import OUTPUT
from edgepeft.cli.session import trainer_and_data
from edgepeft_runtime.errors import DifferentLengths
from edgepeft_runtime.files.durable import check_output

if TYPE_CHECKING:
    from edgepeft_runtime.data.datasets import Dataset
    from edgepeft_runtime.files.tensorfile import Array
    from edgepeft_runtime.train.trainer import Trainer

Batches = Iterator[tuple[int, dict[str, "Array"]]]
"""Index of the first example, and the model's outputs."""


@click.command("predict")
@bundle_argument
@data_options
@template_option
@adapter_option
@run_options
@click.option("--out", type=OUTPUT, help="A .jsonl or .npz file.  [default: JSON lines on standard output]")
def command(
    bundle: Path,
    data: Path,
    text_column: tuple[str, ...],
    label_column: str,
    template: str | None,
    adapter: Path | None,
    batch_size: int,
    threads: int | None,
    out: Path | None,
) -> None:
    """Run BUNDLE's model on data and print one JSON object per example.

    For a classifier these are the class and the probabilities, for any other model its outputs. Labels are not needed.
    An .npz file contains the raw outputs by name.
    """
    if out is not None and out.suffix not in (".jsonl", ".npz"):
        raise click.UsageError("--out must end in .jsonl or .npz.")
    if out is not None:
        check_output(out)
    opening = trainer_and_data(
        bundle,
        data,
        adapter,
        text_column=text_column,
        label_column=label_column,
        template=template,
        threads=threads,
        labelled=False,
    )
    with opening as (trainer, dataset):
        batches = _batches(trainer, dataset, batch_size)
        if out is not None and out.suffix == ".npz":
            _write_npz(out, batches)
            return
        lines = _lines(trainer, batches)
        if out is None:
            for line in lines:
                click.echo(line)
        else:
            _write(out, lines)


def _batches(trainer: Trainer, dataset: Dataset, batch_size: int) -> Batches:
    for start in range(0, len(dataset), batch_size):
        rows = np.arange(start, min(start + batch_size, len(dataset)))
        yield start, trainer.predict(dataset.batch(rows))


def _lines(trainer: Trainer, batches: Batches) -> Iterator[str]:
    manifest = trainer.bundle.manifest
    for start, outputs in batches:
        for offset, answer in enumerate(answers(outputs, manifest)):
            yield json.dumps({"example": start + offset, **answer}, ensure_ascii=False)


def _write(out: Path, lines: Iterator[str]) -> None:
    from edgepeft_runtime.files.durable import write_atomically

    write_atomically(out, (f"{line}\n".encode() for line in lines))


def _write_npz(out: Path, batches: Batches) -> None:
    import io

    from edgepeft_runtime.files.durable import write_atomically

    parts = [outputs for _, outputs in batches]
    try:
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    except ValueError as failure:
        raise DifferentLengths(
            "The outputs of the batches have different shapes, so they do not fit into one array.",
            context=str(failure),
            hint="write .jsonl, or set a --batch-size that covers all examples.",
        ) from None
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomically(out, [buffer.getbuffer()])
