"""Write what a side reads, in a process of its own: ``python -m benchmarks.llm.making KIND SHAPE METHOD MODEL OUT``.

``KIND`` is ``model``, ``inference``, or one of ``VARIANTS`` of a bundle. The last line of the
output is JSON: seconds and the largest memory of the process.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from pathlib import Path

from benchmarks.llm.memory import MB, Sampler
from benchmarks.llm.shapes import METHODS, RANK, write_model
from benchmarks.llm.sides import VARIANTS
from benchmarks.settings import LEARNING_RATE


def made(kind: str, shape: str, method: str, model: Path, out: Path) -> dict[str, float]:
    """Write it, and return seconds, memory in MB, and the bytes of the files."""
    sampler, start = Sampler(), time.perf_counter()
    if kind == "model":
        write_model(shape, out)
    elif kind == "inference":
        _write_inference(model, out)
    else:
        _prepare(kind, method, model, out)
    seconds = round(time.perf_counter() - start, 1)
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {"make_s": seconds, "make_mb": peak, "make_anon_mb": sampler.end()["anon_mb"], "bytes": size}


def _prepare(variant: str, method: str, model: Path, out: Path) -> None:
    import edgepeft
    from edgepeft_export.optimizers import AdamW

    compute, settings = VARIANTS[variant]
    edgepeft.prepare(
        edgepeft.load_source(model),
        method=edgepeft.Lora(rank=RANK, target_modules=METHODS[method]),
        optimizer=AdamW(lr=LEARNING_RATE),
        compute=compute,
        compression=edgepeft.Compression(**settings),
        out=out,
        generation=False,
        on_progress=lambda line: print(f"  {line}", file=sys.stderr, flush=True),
    )


def _write_inference(model: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    out.mkdir()
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, use_cache=False).eval()
    ids = torch.ones(1, 32, dtype=torch.int64)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    length = torch.export.Dim("length", max=network.config.max_position_embeddings)
    axes = {name: {1: length} for name in inputs}
    path = out / "model.onnx"
    torch.onnx.export(
        network, kwargs=inputs, f=path, dynamo=True, verbose=False, external_data=True, dynamic_shapes=axes
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of the exporter, about itself
    print(json.dumps(made(*sys.argv[1:4], Path(sys.argv[4]), Path(sys.argv[5]))), flush=True)
