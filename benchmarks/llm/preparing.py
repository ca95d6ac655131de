"""Measure a preparation by stages: ``python -m benchmarks.llm.preparing SHAPE COMPUTE [--generation] [--work FOLDER]``.

A model of that shape with random weights is written once, in bfloat16 and in several files. Its preparation runs in a
process of its own. A stage lasts from one message of ``prepare`` to the next; its peak is the largest memory of the
process during it, file pages (libraries, the mapped checkpoint, the bundle) included, and anonymous memory alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.llm.memory import MB, Sampler
from benchmarks.llm.shapes import SHAPES, write_model

SHARD = "200MB"


@dataclass
class Stages:
    """Seconds and memory of each stage.

    Attributes:
        rows: Stage, seconds, seconds of CPU, peak MB, anonymous MB.
    """

    rows: list[tuple[str, float, float, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begin("importing")

    def next(self, name: str) -> None:
        """End the stage, and begin the next one."""
        self.end()
        self._begin(name)

    def end(self) -> None:
        """End the stage."""
        peaks = self._sampler.end()
        total = round(peaks["anon_mb"] + peaks["file_mb"], 1)
        now = time.perf_counter(), time.process_time()
        seconds, cpu = (round(after - before, 1) for after, before in zip(now, self._since, strict=True))
        self.rows.append((self._name, seconds, cpu, total, peaks["anon_mb"]))

    def _begin(self, name: str) -> None:
        self._name, self._since, self._sampler = name, (time.perf_counter(), time.process_time()), Sampler()


def measure(model: Path, compute: str, *, generation: bool) -> Stages:
    """Prepare the model in this process."""
    stages = Stages()
    import edgepeft

    stages.next("loading the model")
    source = edgepeft.load_source(model)
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        edgepeft.prepare(
            source,
            method="lora",
            compute=compute,
            generation=generation,
            out=Path(folder) / "bundle",
            on_progress=lambda line: None if line.startswith("the loss") else stages.next(line),
        )
        stages.end()
    return stages


def main() -> None:
    """Write the model, measure in a child, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("compute", choices=("fp32", "int8", "int4"))
    parser.add_argument("--generation", action="store_true", help="with the graph that generates with a cache")
    parser.add_argument("--work", type=Path, help="folder for the model, which is kept")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model = (options.work or Path(temporary)) / options.shape
        if options.in_process:
            warnings.simplefilter("ignore")  # of the exporter, about itself
            print(json.dumps(measure(model, options.compute, generation=options.generation).rows))
            return
        if not model.exists():
            write_model(options.shape, model, shard=SHARD)
        command = [sys.executable, "-m", "benchmarks.llm.preparing", options.shape, options.compute, "--in-process"]
        command += ["--work", str(model.parent), *(["--generation"] if options.generation else [])]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        _print(json.loads(answer.splitlines()[-1]), checkpoint=2 * _bytes(model) / MB)


def _print(rows: list[tuple[str, float, float, float, float]], checkpoint: float) -> None:
    print(f"{'s':>7} {'CPU s':>7} {'peak MB':>8} {'anon MB':>8}  stage")
    for stage, seconds, cpu, peak, anonymous in rows:
        print(f"{seconds:7.1f} {cpu:7.1f} {peak:8.0f} {anonymous:8.0f}  {stage}")
    seconds, cpu = (sum(row[column] for row in rows) for column in (1, 2))
    peak, anonymous = (max(row[column] for row in rows) for column in (3, 4))
    print(
        f"{seconds:7.1f} {cpu:7.1f} {peak:8.0f} {anonymous:8.0f}  all; the checkpoint in fp32 has {checkpoint:.0f} MB"
    )
    print(f"peak memory / checkpoint in fp32: {peak / checkpoint:.2f}, anonymous {anonymous / checkpoint:.2f}")


def _bytes(model: Path) -> int:
    return sum(file.stat().st_size for file in model.glob("*.safetensors"))


if __name__ == "__main__":
    main()
