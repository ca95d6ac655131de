"""Times graphs in turn. A script of numpy and onnxruntime alone, so that environments of other versions can run it.

``python timing.py FOLDER ROUNDS THREADS`` reads ``0.onnx`` and its inputs ``0.npz``, ``1.onnx`` and so on, and prints
JSON: the version of onnxruntime, and per graph the seconds of its fastest run, in CPU time on one thread, which other
processes disturb least, and in wall time on so many threads; ``null`` where the version has no kernel.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

CLOCKS = (time.thread_time, time.perf_counter)


class Timed:
    """Sessions of one graph, and the seconds of its fastest runs."""

    def __init__(self, model: Path, threads: int) -> None:
        self.sessions = [_session(model, count) for count in (1, threads)]
        with np.load(model.with_suffix(".npz")) as arrays:
            self.feeds = {name: ort.OrtValue.ortvalue_from_numpy(arrays[name]) for name in arrays}
        self.best = [math.inf, math.inf]

    def run(self) -> None:
        """Run once on one thread and once on several."""
        for index, (session, clock) in enumerate(zip(self.sessions, CLOCKS, strict=True)):
            if session is None:
                continue
            before = clock()
            session.run_with_ort_values(["o"], self.feeds)
            self.best[index] = min(self.best[index], clock() - before)


def _session(model: Path, threads: int) -> ort.InferenceSession | None:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    try:
        return ort.InferenceSession(str(model), options)
    except ort.capi.onnxruntime_pybind11_state.NotImplemented:
        return None


def main() -> None:
    folder, rounds, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    graphs = [Timed(path, threads) for path in sorted(folder.glob("*.onnx"), key=lambda path: int(path.stem))]
    for _ in range(rounds):
        for graph in graphs:
            graph.run()
    print(
        json.dumps(
            {
                "version": ort.__version__,
                "seconds": [[best if best < math.inf else None for best in graph.best] for graph in graphs],
            }
        )
    )


if __name__ == "__main__":
    main()
