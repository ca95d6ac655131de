"""The memory of a program: the values between its calls, and the activations of the call that runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from edgepeft_export.memory.liveness import Polynomial, activation_peaks, size_of, undominated
from edgepeft_runtime.bundle.programs import Call


def program_peaks(
    calls: Sequence[Call], graphs: Mapping[str, ir.Model], given: Collection[str], symbols: Collection[str]
) -> list[Polynomial]:
    """The sizes of all live activations at the moments that may be the peak.

    Args:
        calls: run in this order. A value is alive from the call that computes it to the last one that reads it.
        graphs: by the name of the file, without its extension.
        given: values that exist before the first call, which are not counted.
        symbols: names of the symbolic dimensions of the batch.
    """
    named = {call.graph: graphs[call.graph.removesuffix(".onnx")] for call in calls}
    peaks = {name: [Counter(peak) for peak in activation_peaks(model, symbols)] for name, model in named.items()}
    last = {value: index for index, call in enumerate(calls) for value in _reads(call, named[call.graph])}
    alive: dict[str, Counter[str]] = {}
    moments = []
    for index, call in enumerate(calls):
        kept = sum(alive.values(), Counter[str]())
        moments += [kept + peak for peak in peaks[call.graph]]
        for output in named[call.graph].graph.outputs:
            name = call.outputs.get(str(output.name), str(output.name))
            if last.get(name, -1) > index and name not in given:
                alive[name] = size_of(output, sorted(symbols))
        alive = {name: size for name, size in alive.items() if last[name] > index}
    return undominated(moments)


def _reads(call: Call, model: ir.Model) -> list[str]:
    return [call.inputs.get(str(value.name), str(value.name)) for value in model.graph.inputs]
