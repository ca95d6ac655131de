"""Programs that only run forward: evaluation, inference, generation."""

from __future__ import annotations

from edgepeft_export.program.cutting import Cut
from edgepeft_export.program.library import Library, bindings, results, used
from edgepeft_runtime.bundle.programs import Call


def forward_calls(cut: Cut, library: Library, head: str) -> list[Call]:
    """One call for each segment.

    Args:
        cut: the graph.
        library: gets the graphs.
        head: the stem of the last segment's file.
    """
    return [forward_call(cut, index, library, head) for index in range(len(cut.segments))]


def forward_call(cut: Cut, index: int, library: Library, head: str, *, trains: bool = False) -> Call:
    """The call of one segment; ``trains`` if it is one of a train step."""
    structure = cut.segments[index]
    file = library.forward_file(structure, cut.opsets, cut.role(index, head), trains=trains)
    return Call(f"{file}.onnx", used(library.graphs[file], bindings(structure, library)), results(structure))
