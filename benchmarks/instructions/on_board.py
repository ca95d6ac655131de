"""Mark the start and the end of one training step: ``python on_board.py FOLDER BUNDLE|MODEL.onnx``.

It runs on the emulated board, with numpy, onnxruntime and edgepeft_runtime. Before the first mark, a step on one row
creates the sessions. Inference has no such step, because its graph has one batch size: its session is created before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

MARK = 0x45500000
"""As in ``counter.c``."""


def main(folder: Path, name: str) -> None:
    batch = dict(np.load(folder / "batch.npz"))
    if name.endswith(".onnx"):
        marked(inference(folder / name, batch))
        return
    from edgepeft_runtime import Trainer

    with Trainer.open(folder / name, threads=1) as trainer:
        trainer.step({key: array[:1] for key, array in batch.items()})
        marked(lambda: print(trainer.step(batch)))


def inference(path: Path, batch: dict[str, np.ndarray]) -> Callable[[], object]:
    """A run of the graph on the batch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    feeds = {value.name: batch[value.name] for value in session.get_inputs()}
    return lambda: session.run(None, feeds)


def marked(work: Callable[[], object]) -> None:
    """Run between the marks 0 and 1."""
    for number in range(2):
        with suppress(ProcessLookupError):
            os.getpgid(MARK + number)
        if number == 0:
            work()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
