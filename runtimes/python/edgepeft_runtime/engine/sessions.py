"""The sessions of a bundle's graphs: one per file, created on first use."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import onnxruntime as ort

from edgepeft_runtime.bundle.bundle import OPTIMIZER, Bundle
from edgepeft_runtime.bundle.plan import GraphInterface
from edgepeft_runtime.bundle.program_checks import WEIGHTS
from edgepeft_runtime.engine.providers import CPU, Provider
from edgepeft_runtime.errors import BundleError, GraphNotLoaded, OnnxruntimeFailed, TrainingError
from edgepeft_runtime.files.tensorfile import Array

_LOG = logging.getLogger(__name__)

LARGE_WEIGHTS = 100_000_000
"""Bytes of frozen tensors from which on they have to stay clean file pages."""

_POWERS_OF_TWO = 0
"""How an arena grows, in the C API's numbers."""

OrtTensors = Mapping[str, ort.OrtValue]
"""ONNX Runtime's own tensors by name."""


class Sessions:
    """Runs the graphs of a bundle.

    Args:
        bundle: an opened bundle.
        threads: threads inside an operator; ``None`` leaves it to onnxruntime.
        profile: folder for the files of onnxruntime's profiler; ``None`` does not profile.
        provider: execution provider that runs them; ``None`` stands for the CPU.
    """

    def __init__(
        self, bundle: Bundle, threads: int | None, profile: Path | None = None, provider: Provider | None = None
    ) -> None:
        self._bundle = bundle
        self._threads = threads
        self._profile = profile
        self._provider = provider or Provider(CPU)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._shared = any(len(calls) > 1 for calls in bundle.manifest.programs.by_name().values())

    def run(self, graph: str, outputs: Sequence[str], inputs: OrtTensors) -> dict[str, ort.OrtValue]:
        """Return these outputs of a graph by name.

        Raises:
            TrainingError: ONNX Runtime failed.
            BundleError: it cannot load the graph.
        """
        session = self._session(graph)
        try:
            found = session.run_with_ort_values(list(outputs), dict(inputs))
        except Exception as failure:  # onnxruntime's exceptions have no class in common but this one
            raise onnxruntime_failed(graph, failure) from failure
        return dict(zip(outputs, found, strict=True))

    def interface(self, graph: str) -> GraphInterface:
        """Return the names of a graph's inputs and outputs."""
        session = self._session(graph)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        return GraphInterface(tuple(value.name for value in inputs), tuple(value.name for value in outputs))

    def end_profiling(self) -> dict[str, Path]:
        """Write the profiler's file of each session so far, and return them by the graph's file."""
        return {graph: Path(session.end_profiling()) for graph, session in self._sessions.items()}

    def close(self) -> None:
        """Release the sessions and the memory they map."""
        self._sessions.clear()

    def _session(self, graph: str) -> ort.InferenceSession:
        if graph not in self._sessions:
            path, began = str(self._bundle.file(graph)), time.monotonic()
            options = session_options(self._threads, self._bundle.manifest.files[WEIGHTS].bytes)
            if graph == OPTIMIZER:  # its nodes are small: spinning costs more than it gains
                options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            if self._profile is not None:
                options.enable_profiling = True
                options.profile_file_prefix = str(self._profile / str(len(self._sessions)))
            if self._shared and _has_shared_arena():
                options.add_session_config_entry("session.use_env_allocators", "1")
            try:
                self._sessions[graph] = self._provider.session(path, options)
            except Exception as failure:  # as above
                hint = "prepare the bundle again with this version of onnxruntime as its minimum."
                raise graph_not_loaded(graph, failure, hint) from failure
            _LOG.debug("loaded %s in %.3f s, threads: %s", graph, time.monotonic() - began, self._threads or "all")
        return self._sessions[graph]


@cache
def _has_shared_arena() -> bool:
    """Let the sessions of a program share one arena; return whether they can.

    An arena keeps what it has allocated. If each graph of a program had its own, the process would need the sum of
    their peaks, although they run one after another. It grows to powers of two: a region for each tensor could not be
    used for a larger tensor of the next graph, and what is never written of a large region is not resident.
    """
    try:
        kind = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(kind, ort.OrtArenaCfg(0, _POWERS_OF_TWO, -1, -1))
    except AttributeError:  # a build without them
        return False
    except RuntimeError:  # the application has registered its own
        return True
    return True


def session_options(threads: int | None, weights: int = 0) -> ort.SessionOptions:
    """Return the options of a session that logs errors only, with so many threads inside an operator.

    Its threads wait for work by spinning, some tens of milliseconds long. They stop when its run ends: each session has
    threads of its own, and those of the last one would take a core from the next.

    Args:
        threads: threads inside an operator; ``None`` leaves it to onnxruntime.
        weights: bytes of frozen tensors. Large ones are not pre-packed: onnxruntime would copy each to the heap.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.enable_mem_pattern = False  # shapes change from batch to batch, and a plan for each takes memory
    if weights >= LARGE_WEIGHTS:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def as_ort(arrays: Mapping[str, Array]) -> dict[str, ort.OrtValue]:
    """Wrap arrays, without a copy, as inputs of a session; their memory must not change from now on."""
    return {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}


_NODE = re.compile(r"while running (?P<operator>\w+) node\. Name:'(?P<node>[^']*)'")
"""ONNX Runtime's sentence about a node; the rest of its message is about its own source files."""


def onnxruntime_failed(graph: str, failure: Exception) -> TrainingError:
    """The error of a graph that ONNX Runtime could not run."""
    node = _NODE.search(str(failure))
    if node is None:
        what, context = f"in {graph}", str(failure)
    else:
        what, context = f"at the operator {node['operator']} of {node['node']!r}", f"in {graph}"
    hint = "the node's name leads to the layer; try other sizes, and smaller batches where memory is short."
    return OnnxruntimeFailed(
        f"ONNX Runtime {ort.__version__} failed {what}.",
        context=context,
        hint=_MEMORY if _lacks_memory(failure) else hint,
    )


def graph_not_loaded(graph: str, failure: Exception, hint: str) -> BundleError:
    """The error of a graph that ONNX Runtime could not load."""
    message = f"ONNX Runtime {ort.__version__} cannot load {graph}."
    return GraphNotLoaded(message, context=str(failure), hint=_MEMORY if _lacks_memory(failure) else hint)


_MEMORY = "memory is short: end other programs, use smaller batches, or prepare the bundle with --memory-budget."


def _lacks_memory(failure: Exception) -> bool:
    text = str(failure).lower()
    return isinstance(failure, MemoryError) or any(
        words in text for words in ("bad_alloc", "failed to allocate memory")
    )
