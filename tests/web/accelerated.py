"""Trains networks with WebGPU in Chromium: ``python -m tests.web.accelerated --page docs/WEBGPU.md``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import edgepeft
from edgepeft_runtime import write_tensors
from tests.support.networks import NETWORKS, to_numpy
from tests.web.toolchain import browse

PACKAGES = {"webgpu": "onnxruntime-web/webgpu", "jsep": "onnxruntime-web/all"}
NAMES = ("mlp", "cnn", "bert", "bert-int8", "gpt2", "llama", "vit")

INTRODUCTION = """\
# WebGPU

Three steps and an evaluation of small networks with LoRA, in Chromium's software renderer (SwiftShader), beside
WebAssembly. A program that differs from WebAssembly, or fails, runs on WebAssembly: see `runtimes/web/README.md`.
`python -m tests.web.accelerated --page docs/WEBGPU.md` makes this page.

| network | package | losses, WebAssembly | losses, with WebGPU | train | eval |
|---|---|---|---|---|---|
"""


def train(name: str, package: str, folder: Path) -> dict[str, Any]:
    """Prepare a network with LoRA, and train it in Chromium on WebAssembly and with a package that has WebGPU.

    Returns:
        ``cpu`` and ``accelerated``: three losses each; ``verdicts``: what the comparison found for each program.
    """
    if name == "mlp":
        _mlp(folder)
    else:
        _network(name, folder)
    return browse("accelerate", folder / "bundle", folder, package)


def _mlp(folder: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    method = edgepeft.Lora(rank=4, target_modules=("0",))
    edgepeft.prepare(model, torch.zeros(2, 16), method=method, out=folder / "bundle")
    inputs = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    write_tensors(folder / "batch.safetensors", {"input": inputs, "labels": np.arange(8) % 4})


def _network(name: str, folder: Path) -> None:
    network = NETWORKS[name.removesuffix("-int8")]
    method = edgepeft.Lora(rank=4, target_modules=network.lora or ("pointwise",))
    compute = "int8" if name.endswith("-int8") else "fp32"
    edgepeft.prepare(
        network.model(), network.example(), method=method, loss=network.loss, compute=compute, out=folder / "bundle"
    )
    write_tensors(folder / "batch.safetensors", to_numpy(*next(network.batches(1))))


def _row(name: str, package: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        found = train(name, package, Path(folder))
    verdicts = [f"{'WebGPU' if one['accepted'] else 'WebAssembly'}: {one['facts'][:160]}" for one in found["verdicts"]]
    losses = [" ".join(f"{loss:.5f}" for loss in found[side]) for side in ("cpu", "accelerated")]
    return "| " + " | ".join([name, f"`{PACKAGES[package]}`", *losses, *verdicts]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, required=True, help="where to write the page")
    page = parser.parse_args().page
    rows = []
    for name in NAMES:
        for package in PACKAGES:
            rows.append(_row(name, package))
            print(rows[-1], flush=True)
    page.write_text(INTRODUCTION + "\n".join(rows) + "\n", "utf-8")


if __name__ == "__main__":
    main()
