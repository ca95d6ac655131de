"""The acceptance check of a round: the loss on held-out data must not grow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgepeft_runtime.bundle.adapter_source import AdapterSource
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.sources import Data
from edgepeft_runtime.engine.evaluate import Evaluation
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.train.trainer import Trainer


@dataclass(frozen=True)
class Verdict:
    """Whether the round is accepted, and the evaluations before and after it."""

    accepted: bool
    before: Evaluation
    after: Evaluation


def check_acceptance(
    bundle: Bundle | str | Path,
    parameters: Mapping[str, Array],
    data: Data,
    before: AdapterSource | Evaluation | None = None,
    *,
    tolerance: float = 0.0,
    batch_size: int = 32,
) -> Verdict:
    """Evaluate a round on held-out data, as a device would, and compare it with its start.

    Args:
        bundle: The round's bundle, or its directory.
        parameters: The round's result, which is not a stack.
        data: Held-out data in a form that :meth:`edgepeft_runtime.Trainer.evaluate` accepts.
        before: The adapter that the round started from, or its evaluation on the same data; by default the bundle's.
        tolerance: Largest accepted increase of the loss.
        batch_size: Examples per batch.

    Raises:
        BundleError: The parameters do not fit the bundle.
        DataError: There are no examples to evaluate.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    old = before if isinstance(before, Evaluation) else _evaluated(opened, before, data, batch_size)
    new = _evaluated(opened, parameters, data, batch_size)
    return Verdict(new.loss <= old.loss + tolerance, old, new)


def _evaluated(bundle: Bundle, adapter: AdapterSource | None, data: Data, batch_size: int) -> Evaluation:
    with Trainer.open(bundle, adapter=adapter) as trainer:
        return trainer.evaluate(data, batch_size=batch_size)
