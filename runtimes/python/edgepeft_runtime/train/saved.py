"""Read what a state directory says about its run, without the bundle and while another process trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgepeft_runtime.engine.engine import TrainState
from edgepeft_runtime.errors import FileError, NoState
from edgepeft_runtime.files.tensorfile import read_tensors
from edgepeft_runtime.names import path_hint
from edgepeft_runtime.train.checkpoint import NEWEST, PREVIOUS
from edgepeft_runtime.train.run import FitState, Run


@dataclass(frozen=True)
class SavedRun:
    """A run as its newest checkpoint has it.

    Attributes:
        path: the state directory.
        fits: the calls of ``fit``, in order.
        steps: optimizer steps taken.
        examples: examples trained on, repeats counted.
        seed: seed of the shuffling.
        tensors: shape of each trainable tensor, by name.
        graphs_sha256: hash of the graphs of its bundle.
    """

    path: Path
    fits: tuple[FitState, ...]
    steps: int
    examples: int
    seed: int
    tensors: dict[str, tuple[int, ...]]
    graphs_sha256: str


def read_run(state: str | Path) -> SavedRun:
    """Return the run of a state directory.

    Raises:
        StateError: there is no checkpoint, or it is of another version.
        FileError: it is damaged.
    """
    folder = Path(state)
    failure: FileError | None = None
    for path in (folder / NEWEST, folder / PREVIOUS):
        if path.exists():
            try:
                file = read_tensors(path, require_digest=True)
            except FileError as damaged:
                failure = failure or damaged
                continue
            run = Run.from_json(file.metadata.get("run", ""), TrainState({}, {}), None)
            prefix = "parameter:"
            shapes = {name: array.shape for name, array in file.tensors.items() if name.startswith(prefix)}
            tensors = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
            graphs = file.metadata.get("graphs_sha256", "")
            return SavedRun(folder, run.fits, run.step, run.examples, run.seed, tensors, graphs)
    if failure is not None:
        raise failure
    raise NoState(
        f"There is no run in {folder}.",
        context=f"it has no {NEWEST}",
        hint=path_hint(
            folder, "give the state directory of a run: without --state it is UPDATE.state, beside the update."
        ),
    )
