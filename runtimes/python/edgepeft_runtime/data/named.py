"""Name the values of a batch or of an example that come in an order: ``(inputs, labels)`` of a torch ``DataLoader``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import TensorSpec
from edgepeft_runtime.errors import NotABatch, TextInBatch
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.shown import quoted

Ordered = tuple[Any, ...] | list[Any]
"""Values in the manifest's order: inputs, then labels."""


def by_name(values: object, manifest: Manifest, *, labels: bool = True) -> Mapping[str, Any]:
    """Return values by the names of the manifest's inputs and labels. A mapping is returned as it is.

    Args:
        values: a mapping; or a tuple or list of values in the manifest's order, inputs before labels. Several inputs
            may be grouped in a tuple, a list or a mapping of their own: ``((ids, mask), labels)``.
        manifest: names the inputs and labels.
        labels: whether labels are needed. If not, the values may end with the inputs.

    Raises:
        BatchError: the values are none of these, or their number differs from the manifest's.
    """
    if isinstance(values, Mapping):
        return values
    specs = (*manifest.inputs, *manifest.labels)
    if not isinstance(values, tuple | list) or not values:
        raise NotABatch(
            "A batch maps names to arrays, or is a tuple of arrays.",
            context=f"found {type(values).__name__}",
            hint=f"pass a dict with {names_of(specs)}, or a tuple in this order.",
        )
    named = dict(values[0]) if isinstance(values[0], Mapping) else {}
    flat = list(_flat(values[1:] if named else values))
    wanted = [spec.name for spec in specs if spec.name not in named]
    counts = {len(wanted)} if labels else {len(wanted), len(wanted) - len(manifest.labels)}
    if len(flat) in counts:
        return {**named, **dict(zip(wanted, flat, strict=False))}
    if any(isinstance(value, str) for value in flat):
        raise text_in_batch(values)
    raise NotABatch(
        f"A batch has {len(flat)} values, but the bundle accepts {len(wanted)}.",
        context=f"expected {', '.join(map(repr, wanted))}, in this order",
        hint="return as many values as the bundle has inputs and labels, or a dict that names them.",
    )


def names_of(specs: Sequence[TensorSpec]) -> str:
    """Return the names of tensors for a message."""
    return ", ".join(repr(spec.name) for spec in specs)


def array_of(value: object) -> Array:
    """Return a value as an array; tensors of torch are detached from their graph and copied from their device.

    Raises:
        ValueError, TypeError: numpy cannot convert the value.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value)


def text_in_batch(values: object) -> TextInBatch:
    """Return the error of texts where arrays are expected."""
    return TextInBatch(
        "The trainer accepts arrays, and this data contains text.",
        context=f"found {quoted(values)}",
        hint="load it with the bundle's tokenizer: trainer.fit(edgepeft.data.load(data, trainer.bundle)).",
    )


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    """Yield the values, those of a group of arrays one by one. A list of numbers is a value, not a group."""
    for value in values:
        if isinstance(value, tuple | list) and value and all(hasattr(part, "shape") for part in value):
            yield from value
        else:
            yield value
