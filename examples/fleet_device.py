"""A device's part of a round: join, train on its own texts, deliver. Needs only numpy and onnxruntime.

Usage: ``python fleet_device.py REMOTE BUNDLE FOLDER EPOCHS``. FOLDER contains the device's texts and its identity.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgepeft_runtime import Trainer
from edgepeft_runtime.fleet.delivering import deliver
from edgepeft_runtime.fleet.joining import join


def main(remote: Path, bundle: Path, folder: Path, epochs: int) -> None:
    device = folder / "fleet"
    joined = join(remote, device, bundle)
    state = folder / f"round{joined.round.round}"
    with Trainer.open(bundle, state=state, adapter=joined.adapter, threads=1) as trainer:
        trainer.fit(folder / "texts.npz", epochs=epochs, batch_size=16, schedule="linear", warmup=0.1)
        update = trainer.save_update(folder / "update.safetensors")
    deliver(update, remote, device)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
