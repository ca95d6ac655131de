"""A program with all its names resolved: what each call reads and writes, and when a value is no longer needed.

A graph's inputs and outputs are known only from the file, so this is the second half of the checks of a program; the
first half, which needs the manifest alone, is in ``edgepeft_runtime.bundle.program_checks``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepeft_runtime.bundle.programs import GENERATE, INFER, SELECT, TRAIN, Accumulation, Call
from edgepeft_runtime.errors import BadProgram
from edgepeft_runtime.shown import quoted

if TYPE_CHECKING:
    from edgepeft_runtime.bundle.manifest import Manifest

LOSS_SUM, LOSS_WEIGHT, LOGITS = "loss_sum", "loss_weight", "logits"


@dataclass(frozen=True)
class GraphInterface:
    """The names of a graph's inputs and outputs."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


InterfaceOf = Callable[[str], GraphInterface]
"""The interface of a graph, by its file."""


@dataclass(frozen=True)
class Step:
    """One call of a plan.

    Attributes:
        graph: the file.
        reads: the value of each input.
        writes: the value of each output that is needed.
        accumulate: further outputs, which are added to accumulators.
        frees: values that no later call reads and that are no results.
    """

    graph: str
    reads: Mapping[str, str]
    writes: Mapping[str, str]
    accumulate: tuple[Accumulation, ...]
    frees: tuple[str, ...] = ()


def plan(
    manifest: Manifest,
    program: str,
    interface_of: InterfaceOf,
    *,
    results: Collection[str] | None = None,
    known: Collection[str] = (),
    gradients: bool = True,
) -> tuple[Step, ...]:
    """Return the calls of a program that are needed for some results.

    Args:
        manifest: the bundle's.
        program: the program's name.
        interface_of: reads a graph's inputs and outputs.
        results: the values to compute; by default all results of the program.
        known: values of an earlier run, which are not computed again.
        gradients: whether to add gradients to accumulators, too.

    Raises:
        BadProgram: a call reads a value that does not exist, or writes one that exists; no call writes a result; a name
            is not an input or output of its graph.
    """
    calls = manifest.programs.by_name()[program]
    given = given_to(manifest, program)
    steps = [_resolved(program, index, call, interface_of(call.graph)) for index, call in enumerate(calls)]
    wanted = results_of(manifest, program) if results is None else results
    _check_order(program, steps, given, wanted)
    if program == TRAIN:
        _check_cache(manifest, steps)
    if not gradients:
        steps = [replace(step, accumulate=()) for step in steps]
    return tuple(_with_frees(list(_needed(steps, {*given, *known}, wanted)), {*wanted, *given}))


def given_to(manifest: Manifest, program: str) -> frozenset[str]:
    """Return the names of the values that exist before the first call of a program."""
    fed = [*manifest.parameters, *manifest.frozen]
    if program == GENERATE:
        spec = manifest.generation
        assert spec is not None  # the manifest was checked
        past = (part.past for part in spec.cache)
        return frozenset({spec.ids, str(spec.attention_mask), *past, *(tensor.name for tensor in fed)})
    batch = manifest.inputs if program == INFER else (*manifest.inputs, *manifest.labels)
    return frozenset(tensor.name for tensor in (*batch, *fed))


def results_of(manifest: Manifest, program: str) -> tuple[str, ...]:
    """Return the values that a program must compute, besides what it adds to accumulators."""
    outputs = tuple(spec.name for spec in manifest.outputs)
    if program == GENERATE:
        spec = manifest.generation
        assert spec is not None  # the manifest was checked
        return (LOGITS, *(part.present for part in spec.cache))
    if program == SELECT:
        return tuple(spec.gradient for spec in manifest.sparse if spec.gradient is not None)
    if program == INFER:
        return outputs
    return (LOSS_SUM, LOSS_WEIGHT) if program == TRAIN else (LOSS_SUM, LOSS_WEIGHT, *outputs)


def _resolved(program: str, index: int, call: Call, interface: GraphInterface) -> Step:
    """Return a call with all outputs; raises ``BadProgram`` for names that the graph does not have."""
    added = {item.output for item in call.accumulate}
    for kind, names, existing in (
        ("input", set(call.inputs), interface.inputs),
        ("output", {*call.outputs, *added}, interface.outputs),
    ):
        unknown = sorted(names.difference(existing))
        if unknown:
            message = f"A program names an {kind} that its graph does not have."
            raise BadProgram(message, _at(program, index, call, unknown[0]))
    reads = {name: call.inputs.get(name, name) for name in interface.inputs}
    outputs = [name for name in interface.outputs if name in call.outputs or name not in added]
    writes = {name: call.outputs.get(name, name) for name in outputs}
    if len(set(writes.values())) < len(writes):
        raise BadProgram("A program writes a value twice.", _at(program, index, call, *sorted(writes.values())))
    return Step(call.graph, reads, writes, call.accumulate)


def _at(program: str, index: int, call: Call | Step, *names: str) -> str:
    return f"{program}[{index}], {quoted(call.graph)}: {', '.join(map(quoted, names[:8]))}"


def _check_order(program: str, steps: Sequence[Step], given: Collection[str], results: Collection[str]) -> None:
    existing = set(given)
    for index, step in enumerate(steps):
        for value in step.reads.values():
            if value not in existing:
                message = "A program reads a value that does not exist before the call."
                raise BadProgram(message, _at(program, index, step, value))
        twice = sorted(existing.intersection(step.writes.values()))
        if twice:
            raise BadProgram("A program writes a value that exists before the call.", _at(program, index, step, *twice))
        existing.update(step.writes.values())
    missing = sorted(set(results) - existing)
    if missing:
        raise BadProgram("No call of a program writes one of its results.", f"{program}: {quoted(missing[0])}")


def _check_cache(manifest: Manifest, steps: Sequence[Step]) -> None:
    """Refuse a cached value that no call writes, or that may change from step to step."""
    if manifest.cache is None:
        return
    parameters = (spec.name for spec in manifest.parameters if spec.name not in manifest.adapter.non_trainable)
    changing = {*parameters, *(spec.name for spec in manifest.labels)}
    written = set[str]()
    for step in steps:
        if changing.intersection(step.reads.values()):
            changing.update(step.writes.values())
        written.update(step.writes.values())
    value = manifest.cache.value
    if value not in written or value in changing:
        message = "The value to cache is not one that calls compute from the inputs and frozen tensors alone."
        raise BadProgram(message, f"cache: {quoted(value)}")


def _needed(steps: Sequence[Step], existing: set[str], results: Collection[str]) -> Iterator[Step]:
    """Return, in order, the calls without which a result or a gradient would be missing, with the outputs they need."""
    wanted, kept = set(results) - existing, list[Step]()
    for step in reversed(steps):
        writes = {output: value for output, value in step.writes.items() if value in wanted}
        if writes or step.accumulate:
            kept.append(replace(step, writes=writes))
            wanted |= set(step.reads.values()) - existing
    return reversed(kept)


def _with_frees(steps: Sequence[Step], kept: Collection[str]) -> Iterator[Step]:
    last = {value: index for index, step in enumerate(steps) for value in step.reads.values()}
    for index, step in enumerate(steps):
        ends = (value for value in dict.fromkeys(step.reads.values()) if last[value] == index and value not in kept)
        yield replace(step, frees=tuple(ends))
