"""Adds up a recording: time and written bytes by operator, kind of work, module, block, call and node."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.files.schema import Json
from edgepeft_runtime.profiling.categories import kind_of
from edgepeft_runtime.profiling.events import Kernel, Run
from edgepeft_runtime.profiling.layers import (
    LOSS,
    OPTIMIZER,
    OTHER,
    UPDATE,
    block_of,
    common_prefix,
    module_of,
    pass_of,
    renaming,
)
from edgepeft_runtime.profiling.record import CallRuns, Recording

LONGEST = 20
"""Number of nodes that are listed."""


@dataclass(frozen=True)
class Row:
    """A part of a step.

    Attributes:
        name: of the operator, module, block, call or node.
        seconds: in kernels.
        kernels: number of kernels.
        written: bytes of their results.
        in_use: the most that onnxruntime's arena had in use after one of them; ``None`` where it does not report it.
        parts: seconds by pass, for modules; by kind of work, for blocks and calls; else empty.
        detail: the operator of a node, the graph of a call; else empty.
    """

    name: str
    seconds: float
    kernels: int
    written: int
    in_use: int | None
    parts: Mapping[str, float]
    detail: str = ""


class Point(NamedTuple):
    """A moment of a step: seconds of kernels before it, bytes in use in onnxruntime's arena, the block."""

    seconds: float
    in_use: int
    block: str


@dataclass(frozen=True)
class MemoryUse:
    """Memory in bytes.

    Attributes:
        before: anonymous memory of the process before a graph was opened: Python, libraries, data.
        anonymous: the largest anonymous memory while it trained.
        file: the largest size of file pages, which the system can drop and read again.
        activations: what is alive at the peak of a step at these sizes, by the bundle's manifest; ``None`` if unknown.
        arena: the most that onnxruntime's arena had in use after a kernel; ``None`` where it does not report it.
        fullest: the module of that kernel.
        weights: ``weights.bin``.
        state: parameters, optimizer state and accumulators.
    """

    before: int
    anonymous: int
    file: int
    activations: int | None
    arena: int | None
    fullest: str | None
    weights: int
    state: int


@dataclass(frozen=True)
class Summary:
    """The profile of a step. Times are seconds, medians over the steps.

    Attributes:
        sizes: the largest size of each dimension in a batch.
        steps: number of steps that were measured.
        threads: threads inside an operator.
        cores: cores that the process may use.
        padding: fraction of the tokens that only fill a batch up; ``None`` without an attention mask.
        step: a step without the profiler.
        profiled: a step with it.
        sessions: runs of onnxruntime's sessions, in ``profiled``.
        kernels: kernels, in ``sessions``; the rest is between them, most of it the profiler's.
        cached: fraction of ``kernels`` that kept activations save in later epochs; ``None`` if none can be kept.
        operators, kinds, passes, modules, nodes: the longest first; of the nodes only those.
        blocks: in the order in which they run.
        calls: in the order of the program; the optimizer is the last.
        memory: of the process.
        timeline: the memory of onnxruntime's arena during a step; empty where it does not report it.
    """

    sizes: Mapping[str, int]
    steps: int
    threads: int
    cores: int
    padding: float | None
    step: float
    profiled: float
    sessions: float
    kernels: float
    cached: float | None
    operators: tuple[Row, ...]
    kinds: tuple[Row, ...]
    passes: tuple[Row, ...]
    modules: tuple[Row, ...]
    blocks: tuple[Row, ...]
    calls: tuple[Row, ...]
    nodes: tuple[Row, ...]
    memory: MemoryUse
    timeline: tuple[Point, ...]

    def to_dict(self) -> Json:
        """Return plain JSON values."""
        return asdict(self) | {"timeline": [point._asdict() for point in self.timeline]}


class _Seen(NamedTuple):
    """A kernel of a step with what it belongs to; its seconds are the median over the steps."""

    kernel: Kernel
    node: str
    module: str
    block: str
    kind: str
    which: str
    call: int


def summarized(bundle: Bundle, recording: Recording) -> Summary:
    """Return the sums of a recording."""
    seen = list(_seen(recording))
    calls = recording.calls
    by_call = _rows(seen, lambda item: f"{item.call:04d}", lambda item: item.kind, lambda item: calls[item.call].graph)
    return Summary(
        sizes=recording.sizes,
        steps=recording.steps,
        threads=recording.threads,
        cores=recording.cores,
        padding=recording.padding,
        step=recording.step_seconds,
        profiled=statistics.median(recording.profiled),
        sessions=sum(statistics.median(run.seconds for run in call.runs) for call in calls),
        kernels=sum(item.kernel.seconds for item in seen),
        cached=None if bundle.manifest.cache is None else _cached(calls, seen),
        operators=_rows(seen, lambda item: item.kernel.operator),
        kinds=_rows(seen, lambda item: item.kind),
        passes=_rows(seen, lambda item: item.which),
        modules=_rows(seen, lambda item: item.module, lambda item: item.which),
        blocks=_in_order(_rows(seen, lambda item: item.block, lambda item: item.kind), seen),
        calls=tuple(sorted(by_call, key=lambda row: row.name)),
        nodes=_rows(seen, lambda item: item.node, detail=lambda item: item.kernel.operator)[:LONGEST],
        memory=_memory(bundle, recording, seen),
        timeline=_timeline(seen),
    )


def _seen(recording: Recording) -> Iterator[_Seen]:
    """Yield the kernels of a step, in order."""
    names = _names(recording)
    usual = [_usual(call) for call in recording.calls]
    modules = {_module(name(kernel.node)) for name, kernels in zip(names, usual, strict=True) for kernel in kernels}
    prefix = common_prefix(modules)
    before: set[str] = set()
    for index, (name, kernels) in enumerate(zip(names, usual, strict=True)):
        ran = set()
        for kernel in kernels:
            node = name(kernel.node)
            module = _module(node).removeprefix(prefix)
            which = UPDATE if module == OPTIMIZER else pass_of(node, before)
            ran.add(node)
            kind = kind_of(kernel.operator)
            yield _Seen(kernel, node.removeprefix(prefix), module, block_of(module), kind, which, index)
        before |= ran


def _usual(call: CallRuns) -> list[Kernel]:
    """Return the kernels of a call's last run, with the median seconds of all runs: other processes interrupt some."""
    seconds: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for run in call.runs:
        for key, kernel in _numbered(run):
            seconds[key].append(kernel.seconds)
    return [replace(kernel, seconds=statistics.median(seconds[key])) for key, kernel in _numbered(call.runs[-1])]


def _numbered(run: Run) -> Iterator[tuple[tuple[str, str, int], Kernel]]:
    """Yield kernels with a key that is the same in every run: node, operator, and how often it has run before."""
    count: Counter[tuple[str, str]] = Counter()
    for kernel in run.kernels:
        key = kernel.node, kernel.operator
        yield (*key, count[key]), kernel
        count[key] += 1


def _module(node: str) -> str:
    module = module_of(node)
    return module.partition(".")[0] if module.startswith((f"{LOSS}.", f"{OPTIMIZER}.")) else module


def _names(recording: Recording) -> list[Callable[[str], str]]:
    """Return, for each call, the function from a node's name in the graph to its name in that call."""
    sharing: dict[str, list[int]] = defaultdict(list)
    for index, call in enumerate(recording.calls):
        sharing[call.graph].append(index)
    found: dict[int, Callable[[str], str]] = {}
    for indices in sharing.values():
        nodes = {kernel.node for kernel in recording.calls[indices[0]].runs[0].kernels}
        renamers = renaming([recording.calls[index].tensors for index in indices], nodes)
        found.update(zip(indices, renamers, strict=True))
    return [found[index] for index in range(len(recording.calls))]


def _rows(
    seen: Sequence[_Seen],
    name: Callable[[_Seen], str],
    parts: Callable[[_Seen], str] | None = None,
    detail: Callable[[_Seen], str] | None = None,
) -> tuple[Row, ...]:
    """Return one row for each name, the longest first."""
    groups: dict[str, list[_Seen]] = defaultdict(list)
    for item in seen:
        groups[name(item)].append(item)
    found = []
    for group, items in groups.items():
        by_part: dict[str, float] = defaultdict(float)
        if parts is not None:
            for item in items:
                by_part[parts(item)] += item.kernel.seconds
        found.append(
            Row(
                group,
                sum(item.kernel.seconds for item in items),
                len(items),
                sum(item.kernel.written for item in items),
                _most(items),
                dict(by_part),
                "" if detail is None else detail(items[0]),
            )
        )
    return tuple(sorted(found, key=lambda row: -row.seconds))


def _most(seen: Sequence[_Seen]) -> int | None:
    return max((item.kernel.in_use for item in seen if item.kernel.in_use is not None), default=None)


def _in_order(rows: Sequence[Row], seen: Sequence[_Seen]) -> tuple[Row, ...]:
    """Return rows of blocks in the order in which they run first; what is no block is last."""
    order = {name: index for index, name in enumerate(dict.fromkeys(item.block for item in seen))}
    return tuple(sorted(rows, key=lambda row: (row.name in (OTHER, OPTIMIZER), order[row.name])))


def _cached(calls: Sequence[CallRuns], seen: Sequence[_Seen]) -> float:
    saved = sum(item.kernel.seconds for item in seen if calls[item.call].cached)
    return saved / max(sum(item.kernel.seconds for item in seen), 1e-9)


def _memory(bundle: Bundle, recording: Recording, seen: Sequence[_Seen]) -> MemoryUse:
    manifest = bundle.manifest
    arena = _most(seen)
    fullest = None if arena is None else next(item.module for item in seen if item.kernel.in_use == arena)
    return MemoryUse(
        before=recording.before.anonymous,
        anonymous=recording.peak.anonymous,
        file=recording.peak.file,
        activations=None if manifest.memory is None else manifest.memory.bytes_at(recording.sizes),
        arena=arena,
        fullest=fullest,
        weights=sum(spec.bytes for spec in manifest.stored),
        state=_state(manifest),
    )


def _state(manifest: Manifest) -> int:
    kept = sum(spec.size for spec in (*manifest.parameters, *manifest.optimizer.state))
    return 4 * (kept + sum(bucket.size for bucket in manifest.buckets))


def _timeline(seen: Sequence[_Seen]) -> tuple[Point, ...]:
    points, now = [], 0.0
    for item in seen:
        now += item.kernel.seconds
        if item.kernel.in_use is not None:
            points.append(Point(now, item.kernel.in_use, item.block))
    return tuple(points)
