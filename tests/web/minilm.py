"""MiniLM in a browser: ``python -m tests.web.minilm`` prints ms per step and peak memory, on one thread and on two.

MiniLM-L6 with LoRA r=8 on query and value, int8, on docstrings of Python's standard library that are typed into the
page; batches of eight. ``--steps`` sets how many steps are timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import edgepeft
from benchmarks.cases.minilm import model_path
from tests.web.toolchain import ROOT, browse

BATCH = 8
LONGEST = 64
COUNT = 48

sys.path.append(str(ROOT / "examples"))
from docstrings import TOPICS, collect  # noqa: E402


def prepare(folder: Path, compute: str = "int8") -> Path:
    """The bundle at ``folder``."""
    source = edgepeft.load_source(model_path(), task="text-classification", classes=list(TOPICS), max_length=LONGEST)
    method = edgepeft.Lora(rank=8, alpha=16, target_modules=("query", "value"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return edgepeft.prepare(source, method=method, compute=compute, out=folder / "bundle").bundle


def examples(count: int = COUNT) -> list[tuple[str, str]]:
    """Docstrings of one line, and their topics in turn."""
    found = collect()
    by_topic = {topic: [text for text, of in found if of == topic and "\n" not in text] for topic in TOPICS}
    topics = list(TOPICS)
    return [(by_topic[topics[i % len(topics)]][i // len(topics)], topics[i % len(topics)]) for i in range(count)]


def train(bundle: Path, folder: Path, threads: int, steps: int, data: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What the page makes of examples that are typed into it."""
    path = folder / "texts.txt"
    path.write_text("".join(f"{topic}: {text}\n" for text, topic in data), "utf-8")
    return browse("type", bundle, path, threads, steps, BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    print(
        f"{'base':6}{'threads':>8}{'ms per step':>13}{'peak MB':>9}{'first loss':>12}{'last loss':>11}{'accuracy':>10}"
    )
    for compute in ("fp32", "int8"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            bundle = prepare(folder, compute)
            for threads in (1, 2):
                found = train(bundle, folder, threads, steps, examples())
                time = statistics.median(found["milliseconds"])
                first, last = found["losses"][0], statistics.mean(found["losses"][-6:])
                print(
                    f"{compute:6}{found['threads']:>8}{time:>13.0f}{found['peak'] / 1e6:>9.0f}"
                    f"{first:>12.3f}{last:>11.3f}{found['accuracy']:>10.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
