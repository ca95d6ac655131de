"""Train bundles and print the results: ``python figures.py JOBS.json``, with numpy and edgepeft_runtime alone.

A job names a ``bundle``, a tensor file with ``data``, the first and last (exclusive) example of each step in
``batches``, the learning rate ``lr`` (``null``: the bundle's), and the file to write the ``update`` to.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from edgepeft_runtime import Trainer, read_tensors


def figures(job: dict[str, Any]) -> dict[str, Any]:
    """Losses of the steps; then loss and accuracy on all data, and the outputs for the first four examples."""
    data = read_tensors(Path(job["data"])).tensors
    with Trainer.open(job["bundle"]) as trainer:
        cut = ({name: array[start:stop] for name, array in data.items()} for start, stop in job["batches"])
        losses = [trainer.step(batch, lr=job["lr"]) for batch in cut]
        evaluation = trainer.evaluate(data, batch_size=40)
        outputs = trainer.predict({name: array[:4] for name, array in data.items()})
        trainer.save_update(job["update"])
    return {
        "losses": losses,
        "evaluation": {"loss": evaluation.loss, "accuracy": evaluation.accuracy},
        "outputs": {name: values.tolist() for name, values in outputs.items()},
    }


def main() -> None:
    """Run all jobs in one process, because starting Python is slow in an emulator."""
    import platform

    import onnxruntime

    jobs = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    names = ("machine", "python", "onnxruntime")
    found = dict(zip(names, (platform.machine(), platform.python_version(), onnxruntime.__version__), strict=True))
    print(json.dumps({**found, "jobs": [figures(job) for job in jobs]}))


if __name__ == "__main__":
    main()
