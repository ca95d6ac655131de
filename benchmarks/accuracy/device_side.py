"""The device's run, in its own process: ``python -m benchmarks.accuracy.device_side BUNDLE DATA SETTINGS``.

DATA is a folder with ``train.npz`` and ``test.npz``; SETTINGS is a JSON object with ``plan``, ``seed`` and
``threads``. Prints the accuracy on the held-out examples as JSON. Imports only numpy and the device runtime.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.plan import Plan, cut
from edgepeft_runtime import Trainer


def main(bundle: Path, data: Path, settings: dict[str, Any]) -> float:
    """Train as planned; return the accuracy."""
    plan = Plan(**settings["plan"])
    train, test = (dict(np.load(data / name)) for name in ("train.npz", "test.npz"))
    steps = plan.steps(len(train["labels"]))
    with Trainer.open(bundle, threads=settings["threads"]) as trainer:
        for step, batch in enumerate(plan.batches(train, settings["seed"]), 1):
            trainer.step(batch, lr=plan.rate(step, steps))
        output = trainer.bundle.manifest.outputs[0].name
        right = [trainer.predict(batch)[output].argmax(1) == batch["labels"] for batch in cut(test, 32)]
    return float(np.concatenate(right).mean())


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))))
