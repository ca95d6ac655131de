"""The sides of a comparison. Each module runs as a process and imports only what its side needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Side:
    """One row of a table.

    Attributes:
        module: The module that its process runs, called with the case's folder, ``argument`` and the number of threads.
        argument: of the module.
        environment: ``host``, or another in which it runs, in the folder ``.venv-ENVIRONMENT``.
        artifacts: The module that makes what it reads in that environment, called with the folder that
            ``benchmarks.preparing`` filled.
        losses: how its losses must go with those of ``torch-eager``: ``same`` (1e-3 of them), ``near`` (10 % of the
            first), ``fall``, or ``none`` where it does not train. A side that is pruned is another model: its need
            only fall.
        bundle: whether it trains a bundle, made with ``benchmarks.variants.SETTINGS[argument]``.
    """

    module: str
    argument: str
    environment: str = "host"
    losses: str = "same"
    bundle: bool = False
    artifacts: str | None = None


def _device(name: str, losses: str) -> Side:
    return Side("benchmarks.sides.device_runtime", name, losses=losses, bundle=True)


SIDES = {
    "torch-eager": Side("benchmarks.sides.torch_peft", "eager"),
    "torch-compile": Side("benchmarks.sides.torch_peft", "compile"),
    "ort-inference-fp32": Side("benchmarks.sides.ort_inference", "inference.onnx", losses="none"),
    "ort-training": Side(
        "benchmarks.sides.ort_training",
        "ort_training",
        environment="ort-training",
        artifacts="benchmarks.sides.ort_artifacts",
    ),
    "ort-training-own": Side("benchmarks.sides.ort_engine", "ort-own", environment="ort-training", bundle=True),
    "ort-training-own-int8": Side(
        "benchmarks.sides.ort_engine", "ort-own-int8", environment="ort-training", losses="near", bundle=True
    ),
    "onnxsim": Side(
        "benchmarks.sides.onnxsim_step",
        "onnxsim",
        environment="onnxsim",
        artifacts="benchmarks.sides.onnxsim_artifacts",
    ),
    "executorch": Side(
        "benchmarks.sides.executorch_training",
        "executorch",
        environment="executorch",
        losses="fall",  # it has no AdamW
        artifacts="benchmarks.sides.executorch_artifacts",
    ),
    "edgepeft-fp32": _device("fp32", "same"),
    "edgepeft-int8": _device("int8", "near"),
    "edgepeft-int4": _device("int4", "near"),
    "edgepeft-int8-memory": _device("int8-memory", "near"),
    "edgepeft-int8-pruned": _device("int8-pruned", "fall"),
}
"""Side by name, in the order they take turns."""
