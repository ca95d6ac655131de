"""Write the inputs of a case's sides: ``python -m benchmarks.preparing CASE FOLDER SIDE...``.

It runs in its own process so that the driver stays small. A failed preparation becomes an entry under ``failures``
in ``case.json``, and the other sides run.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.cases import load
from benchmarks.cases.base import Case
from benchmarks.peers.official_forward import write_forward
from benchmarks.peers.rivals import ROWS, row_labels, write_executorch, write_onnxsim
from benchmarks.settings import LEARNING_RATE
from benchmarks.sides import SIDES
from benchmarks.variants import prepare_variant
from edgepeft.methods import attach
from edgepeft_export.optimizers import AdamW

RIVALS = {"ort-training": write_forward, "onnxsim": write_onnxsim, "executorch": write_executorch}
"""What another environment makes its artifacts from, by side."""


def write_case(name: str, folder: Path, sides: Sequence[str]) -> None:
    """Write ``case.json``, ``batch.npz``, and the inputs of each of ``sides``."""
    case = load(name)
    base = case.source()
    assert isinstance(base.model, torch.nn.Module)
    batch = case.batch()
    np.savez(folder / "batch.npz", allow_pickle=False, **batch)
    np.save(folder / ROWS, row_labels(base.loss, batch["labels"]))
    failures: dict[str, str] = {}
    for side in (side for side in sides if side in case.sides):
        make = partial(_write_side, case, side, folder)
        if line := case.skipped.get(side) or _failure(make):
            failures[side] = line
    about = {
        "summary": case.summary,
        "loss": base.loss,
        "checkpoint_bytes": checkpoint_bytes(base.model),
        "failures": failures,
        "unmeasured": [side for side in sides if side not in case.sides],
    }
    (folder / "case.json").write_text(json.dumps(about), encoding="utf-8")


def checkpoint_bytes(model: torch.nn.Module) -> int:
    """Bytes of the model's tensors in a checkpoint, shared ones once."""
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _failure(make: Callable[[], object]) -> str | None:
    """The first line of the error, if there was one. The table shows it instead of a number."""
    try:
        make()
    except Exception as error:
        print(f"  {type(error).__name__}: {error}", file=sys.stderr)
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return None


def _write_side(case: Case, side: str, folder: Path) -> None:
    kind = SIDES[side]
    if kind.bundle:
        optimizer = AdamW(lr=LEARNING_RATE)
        prepare_variant(kind.argument, case.source(), case.method, optimizer, folder / kind.argument, [_inputs(case)])
    elif side == "ort-inference-fp32":
        _write_inference(case, folder / kind.argument)
    elif side in RIVALS:
        model, inputs = _attached(case), {key: torch.from_numpy(array) for key, array in _inputs(case).items()}
        RIVALS[side](model, inputs, case.source().loss, folder / kind.argument)
    else:
        torch.save(_attached(case), folder / "model.pt")


def _inputs(case: Case) -> dict[str, np.ndarray]:
    return {name: array for name, array in case.batch().items() if name != "labels"}


def _attached(case: Case) -> torch.nn.Module:
    model = case.source().model
    assert isinstance(model, torch.nn.Module)
    return attach(case.method, model).eval()


def _write_inference(case: Case, path: Path) -> None:
    model = case.source().model
    assert isinstance(model, torch.nn.Module)
    inputs = {name: torch.from_numpy(array) for name, array in _inputs(case).items()}
    torch.onnx.export(model.eval(), kwargs=inputs, f=path, dynamo=True, verbose=False)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of the exporter, about itself
    write_case(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
