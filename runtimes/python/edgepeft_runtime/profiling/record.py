"""Takes training steps, first as they are, then with onnxruntime's profiler on."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from edgepeft_runtime.bundle.adapter_source import AdapterSource
from edgepeft_runtime.bundle.bundle import OPTIMIZER, Bundle
from edgepeft_runtime.bundle.graphfile import nodes_of
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.plan import Step, plan
from edgepeft_runtime.bundle.programs import TRAIN
from edgepeft_runtime.data.batch import Batch, checked_batch
from edgepeft_runtime.data.sources import Data, source_of
from edgepeft_runtime.engine.engine import Engine
from edgepeft_runtime.engine.portable import PortableEngine
from edgepeft_runtime.errors import NoData
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.profiling.events import Run, read_runs
from edgepeft_runtime.profiling.layers import renamed_layouts
from edgepeft_runtime.train.memory.peak import Memory, PeakSampler
from edgepeft_runtime.train.trainer import Trainer

_MASK = "attention_mask"
_NO_UPDATE = 0.0
"""The learning rate: a step costs the same, and no data can make it diverge."""


@dataclass(frozen=True)
class CallRuns:
    """One call of the program ``train``, or the optimizer.

    Attributes:
        graph: the file.
        tensors: the frozen tensors and parameters that it reads, in the order of the graph's inputs.
        cached: whether ``fit(cache="activations")`` leaves it out from the second epoch on.
        runs: one per step.
    """

    graph: str
    tensors: tuple[str, ...]
    cached: bool
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Recording:
    """The measurements of a step.

    Attributes:
        sizes: the largest size of each dimension in a batch.
        padding: fraction of the tokens that only fill a batch up; ``None`` without an attention mask.
        steps: number of steps that were measured, without the first.
        threads: threads inside an operator.
        cores: cores that this process may use.
        seconds: of each step without the profiler.
        profiled: of each step with it.
        before: memory of the process before a graph was opened.
        peak: largest memory of the process while it trained.
        calls: in the order of the step; the optimizer is the last.
    """

    sizes: Mapping[str, int]
    padding: float | None
    steps: int
    threads: int
    cores: int
    seconds: tuple[float, ...]
    profiled: tuple[float, ...]
    before: Memory
    peak: Memory
    calls: tuple[CallRuns, ...]

    @property
    def step_seconds(self) -> float:
        """The median of a step without the profiler."""
        return statistics.median(self.seconds)


def record(
    bundle: Bundle, data: Data, *, adapter: AdapterSource | None, batch_size: int, steps: int, threads: int | None
) -> Recording:
    """Take ``steps`` steps of each kind after a first one, which allocates memory. No parameter changes."""
    batches = _batches(bundle.manifest, data, batch_size, steps + 1)
    with PeakSampler() as now:
        pass
    with PeakSampler() as sampler, Trainer.open(bundle, adapter=adapter, threads=threads) as trainer:
        trainer.pick(batches[:1])
        engine, state = trainer.session.engine, trainer.session.run.state
        parameters = engine.arrays(state)[0]
        checked = [checked_batch(batch, bundle.manifest) for batch in batches]
        seconds = _timed(engine, parameters, checked, steps)
    with tempfile.TemporaryDirectory(prefix="edgepeft-profile-") as folder:
        profiled = PortableEngine(bundle, threads=threads, profile=Path(folder))
        try:
            slower = _timed(profiled, parameters, checked, steps)
            calls = _calls(bundle, profiled, steps)
        finally:
            profiled.close()
    cores = _cores()
    return Recording(
        _sizes(bundle.manifest, checked),
        _padding(bundle.manifest, checked),
        steps,
        threads or cores,
        cores,
        seconds,
        slower,
        now.peak,
        sampler.peak,
        calls,
    )


def _batches(manifest: Manifest, data: Data, batch_size: int, count: int) -> list[Batch]:
    """Return the first batches of the data, shuffled as ``fit`` does."""
    batches = list(islice(source_of(data, manifest, batch_size, shuffle_seed=0).batches(0), count))
    if not batches:
        raise NoData("The data has no batches.", context=None, hint="pass at least one example.")
    return batches


def _timed(
    engine: Engine, parameters: Mapping[str, Array], batches: Sequence[Mapping[str, Array]], steps: int
) -> tuple[float, ...]:
    """Return the seconds of each step but the first. Batches are used again where there are too few."""
    state, seconds = engine.load(parameters), []
    for step, batch in enumerate(islice(cycle(batches), steps + 1), start=1):
        start = time.perf_counter()
        state = engine.train(state, [batch], lr=_NO_UPDATE, step=step).state
        seconds.append(time.perf_counter() - start)
    return tuple(seconds[1:])


def _calls(bundle: Bundle, engine: PortableEngine, steps: int) -> tuple[CallRuns, ...]:
    """Assign the runs of each session to the calls of the program, which run in order in every step."""
    manifest = bundle.manifest
    own = {spec.name for spec in (*manifest.parameters, *manifest.frozen)}
    known = () if manifest.cache is None else (manifest.cache.value,)
    planned = plan(manifest, TRAIN, engine.interface)
    needed = {_key(call) for call in plan(manifest, TRAIN, engine.interface, known=known)}
    runs = {graph: _named(bundle, graph, read_runs(file)) for graph, file in engine.end_profiling().items()}
    count = Counter(call.graph for call in planned)
    done: Counter[str] = Counter()
    calls = []
    for call in planned:
        found = runs[call.graph]
        assert len(found) == count[call.graph] * (steps + 1), f"{call.graph}: {len(found)} runs"
        tensors = tuple(name for name in call.reads.values() if name in own)
        mine = tuple(found[done[call.graph] :: count[call.graph]][1:])
        calls.append(CallRuns(call.graph, tensors, _key(call) not in needed, mine))
        done[call.graph] += 1
    return (*calls, CallRuns(OPTIMIZER, (), False, tuple(runs[OPTIMIZER][1:])))


def _named(bundle: Bundle, graph: str, runs: list[Run]) -> list[Run]:
    """Return runs whose nodes have the names that they have in the file."""
    name = renamed_layouts(nodes_of(bundle.file(graph).read_bytes()))
    return [
        replace(run, kernels=tuple(replace(kernel, node=name(kernel.node)) for kernel in run.kernels)) for run in runs
    ]


def _key(call: Step) -> tuple[str, tuple[str, ...]]:
    """Return the names that identify each call of a program: no value is written twice."""
    return call.graph, tuple(call.reads.values())


def _sizes(manifest: Manifest, batches: Sequence[Mapping[str, Array]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for batch in batches:
        for name, size in _dims(manifest, batch):
            sizes[name] = max(sizes.get(name, 0), size)
    return sizes


def _dims(manifest: Manifest, batch: Mapping[str, Array]) -> Iterator[tuple[str, int]]:
    for spec in (*manifest.inputs, *manifest.labels):
        for dim, size in zip(spec.shape, batch[spec.name].shape, strict=True):
            if isinstance(dim, str):
                yield dim, size


def _padding(manifest: Manifest, batches: Sequence[Mapping[str, Array]]) -> float | None:
    fields = manifest.text.fields if manifest.text is not None else {}
    masks = [spec.name for spec in manifest.inputs if fields.get(spec.name, spec.name) == _MASK]
    if not masks:
        return None
    return float(np.mean(np.concatenate([batch[masks[0]].reshape(-1) == 0 for batch in batches])))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
