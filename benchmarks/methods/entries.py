"""The compared methods, each with its learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import edgepeft
from benchmarks.accuracy.plan import CLIP, Batch
from edgepeft.compress import Pruning
from edgepeft.methods import (
    IA3,
    Adapter,
    BitFit,
    Dora,
    Freeze,
    FrozenA,
    Full,
    Head,
    Lora,
    Method,
    Norm,
    Prefix,
    Prompt,
    Pruned,
    PTuning,
    RsLora,
    Shared,
    Sift,
    Vera,
)
from edgepeft_export.optimizers import AdamW

QUERY_VALUE = ("query", "value")
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Learning rates that ``--tune`` tries."""


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        rate: learning rate of AdamW, one of ``RATES``; ``--tune`` prints how they do on texts kept back from training.
        masked: Fraction of single weights that Wanda sets to zero first.
        fraction: Fraction of the gradient that is applied at each step; the rest is carried over.
    """

    method: Method
    rate: float
    masked: float = 0.0
    fraction: float = 1.0


ENTRIES: dict[str, Entry] = {
    "lora": Entry(Lora(rank=8, alpha=16, target_modules=QUERY_VALUE), 3e-3),
    "rslora": Entry(RsLora(rank=8, alpha=16, target_modules=QUERY_VALUE), 3e-3),
    "dora": Entry(Dora(rank=8, alpha=16, target_modules=QUERY_VALUE), 3e-3),
    "ffa": Entry(FrozenA(rank=8, alpha=16, target_modules=QUERY_VALUE), 1e-2),
    "shared": Entry(Shared(rank=8, alpha=16, target_modules=QUERY_VALUE), 3e-3),
    "adapter (Pfeiffer)": Entry(Adapter(), 3e-3),
    "adapter (Houlsby)": Entry(Adapter(placement="houlsby"), 1e-2),
    "ia3": Entry(IA3(), 1e-2),
    "vera": Entry(Vera(target_modules=QUERY_VALUE), 1e-2),
    "norm": Entry(Norm(), 1e-2),
    "prefix": Entry(Prefix(), 1e-2),
    "prompt": Entry(Prompt(), 1e-1),
    "ptuning": Entry(PTuning(), 1e-1),
    "bitfit": Entry(BitFit(), 1e-2),
    "sift": Entry(Sift(rate=0.01), 3e-3),
    "pruned": Entry(Pruned(), 3e-4, masked=0.5),
    "head": Entry(Head(), 1e-2),
    "freeze (last 2 blocks)": Entry(Freeze(last_blocks=2), 1e-3),
    "full": Entry(Full(), 3e-4),
    "lora, 10 % of the gradient": Entry(Lora(rank=8, alpha=16, target_modules=QUERY_VALUE), 3e-3, fraction=0.1),
}


def prepare(
    entry: Entry, source: edgepeft.Source, rate: float, out: Path, calibration: Sequence[Batch]
) -> edgepeft.Prepared:
    """Prepare the entry's bundle, the base in fp32.

    Args:
        source: an untouched base model; it is changed.
        calibration: batches of inputs, on which the weights to mask are scored.
    """
    masks = Pruning(weights=entry.masked, score="wanda") if entry.masked else None
    fraction = None if entry.fraction == 1 else entry.fraction
    return edgepeft.prepare(
        source,
        method=entry.method,
        optimizer=AdamW(lr=rate, max_grad_norm=CLIP, gradient_fraction=fraction),
        compression=edgepeft.Compression(masks, calibration) if masks else None,
        out=out,
    )
