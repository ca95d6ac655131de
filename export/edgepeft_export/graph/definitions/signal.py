"""Signals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.definitions.registry import NotDefined, definition
from edgepeft_export.graph.definitions.spectrum import transform
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dims_of


@definition("STFT")
def short_time_transform(node: ir.Node, given: Sequence[ir.Value | None], emit: Emitter) -> Sequence[ir.Value]:
    """The transform of overlapping frames, each times the window: [batch, frames, bins, 2]."""
    signal, step, window, length = [*given, None, None][:4]
    assert signal is not None and step is not None
    if window is None and length is None:
        raise NotDefined("it has neither a window nor a frame length", "give it one of the two")
    if dims_of(signal)[-1] not in (1, 2):
        raise NotDefined("whether its signal is complex is not known", "declare the shapes of the inputs")
    size = _scalar(emit.dim(window, 0) if window is not None else length, emit)
    last = emit.op("Sub", _scalar(emit.dim(signal, 1), emit), size)
    zero, one = (emit.constant(np.asarray(number, np.int64)) for number in (0, 1))
    starts = emit.op("Range", zero, emit.op("Add", last, one), _scalar(step, emit))
    offsets = emit.op("Range", zero, size, one)
    rows = emit.op("Add", emit.op("Unsqueeze", starts, emit.ints(1)), offsets)
    frames = emit.op("Gather", signal, rows, axis=1)
    if window is not None:
        frames = emit.op("Mul", frames, emit.op("Unsqueeze", window, emit.ints(1)))
    return (transform(emit, frames, 2, onesided=node.attributes.get_int("onesided", 1)),)


def _scalar(value: ir.Value | None, emit: Emitter) -> ir.Value:
    assert value is not None
    whole = value if value.dtype == ir.DataType.INT64 else emit.op("Cast", value, to=ir.DataType.INT64.value)
    return emit.op("Reshape", whole, emit.constant(np.zeros(0, np.int64)))
