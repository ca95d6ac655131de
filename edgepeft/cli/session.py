"""Load a bundle with an adapter and data, for several commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgepeft.cli.options import adapter_of

if TYPE_CHECKING:
    from edgepeft_runtime.data.datasets import Dataset
    from edgepeft_runtime.train.trainer import Trainer


@contextmanager
def trainer_and_data(
    bundle: Path,
    data: Path,
    adapter: Path | None,
    *,
    text_column: tuple[str, ...],
    label_column: str,
    template: str | None,
    threads: int | None,
    labelled: bool = True,
) -> Iterator[tuple[Trainer, Dataset]]:
    """Yield a trainer of a bundle with the given adapter, and the data."""
    from edgepeft.data import load
    from edgepeft_runtime.bundle.bundle import Bundle
    from edgepeft_runtime.train.trainer import Trainer

    opened = Bundle.open(bundle)
    chosen = adapter_of(adapter, opened)
    dataset = load(
        data, opened, text_column=text_column, label_column=label_column, labelled=labelled, template=template
    )
    with Trainer.open(opened, adapter=chosen, threads=threads) as trainer:
        yield trainer, dataset
