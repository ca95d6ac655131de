"""Programs: lists of calls, each of which runs one graph on named values (section 3 of the SPEC)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from edgepeft_runtime.files.schema import Mark, Natural, write

TRAIN, EVAL, INFER, SELECT, GENERATE = "train", "eval", "infer", "select", "generate"


@dataclass(frozen=True)
class Accumulation:
    """A flat output of a graph that is added to a part of a bucket's accumulator, from ``offset`` on."""

    output: str
    bucket: str
    offset: Natural = 0


@dataclass(frozen=True)
class Call:
    """One run of a graph.

    Attributes:
        graph: the file.
        inputs: the value of each input of the graph that does not have the input's own name.
        outputs: the name of the value that each output becomes, if it is not the output's own.
        accumulate: outputs that are gradients. They are no values unless ``outputs`` names them.
    """

    graph: str
    inputs: Annotated[Mapping[str, str], Mark.OPTIONAL] = field(default_factory=dict)
    outputs: Annotated[Mapping[str, str], Mark.OPTIONAL] = field(default_factory=dict)
    accumulate: Annotated[tuple[Accumulation, ...], Mark.OPTIONAL] = ()


@dataclass(frozen=True)
class Programs:
    """The programs of a bundle. ``select`` and ``generate`` are ``None`` where there is none."""

    train: tuple[Call, ...]
    eval: tuple[Call, ...]
    infer: tuple[Call, ...]
    select: Annotated[tuple[Call, ...] | None, Mark.OMITTED] = None
    generate: Annotated[tuple[Call, ...] | None, Mark.OMITTED] = None

    def by_name(self) -> dict[str, tuple[Call, ...]]:
        """Return the programs that there are."""
        return {name: calls for name, calls in vars(self).items() if calls is not None}

    def graphs(self, *names: str) -> tuple[str, ...]:
        """Return the graphs of these programs, by default of all, each once, in the order of their first use."""
        programs = self.by_name()
        return tuple(dict.fromkeys(call.graph for name in names or programs for call in programs[name]))

    def of_a_run(self) -> dict[str, object]:
        """Return the programs by which a run computes, as plain JSON values: part of ``graphs_sha256``."""
        written: dict[str, object] = write({TRAIN: self.train, EVAL: self.eval})
        return written


@dataclass(frozen=True)
class CacheEntry:
    """The value below which nothing trains. Computed once for an example, it is the same in every epoch."""

    value: str
