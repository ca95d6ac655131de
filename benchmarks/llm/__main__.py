"""Time and memory of a training step on language models: ``python -m benchmarks.llm``.

Models with random weights are written on the spot, and removed after their rows. All sides of a case are alive at once
and take turns; ``--alone`` runs one after another, for models of which the machine cannot keep all at once. Rows merge
into ``llm.json`` as soon as a length is measured, so that a long run can be made in parts; ``--resume`` leaves out the
lengths and limits that are there.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.llm.memory import Limit, forget_files, warm_files
from benchmarks.llm.page import page
from benchmarks.llm.results import KEY, Row, machine_kind, merged, row_of
from benchmarks.llm.serving import GROUP
from benchmarks.llm.shapes import DESCRIPTION, METHODS, SHAPES
from benchmarks.llm.sides import BASELINE, SIDES, TORCH, command, default_sides, environment
from benchmarks.turns import ROOT, Running, start, take_turns

PAGE = ROOT / "docs" / "LLM.md"
OUT = Path(__file__).parent.with_suffix(".json")
_DEVICE = [name for name, side in SIDES.items() if side.bundle and not side.baseline]


def main() -> None:
    options = parsed(sys.argv[1:])
    kept = _results(options.out).get("rows", []) if options.resume else []
    for shape in options.shapes:
        with _work(options.work) as work:
            for method in options.methods:
                case = Case(shape, method, work, options)
                for rows in case.parts(kept):
                    keep(options.out, shape, rows, case.about)


def keep(out: Path, shape: str, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Merge the rows into the results, and write the page if these are the project's."""
    results = _results(out)
    description = {**machine.describe(), "versions": machine.versions()}
    results["machines"] = {**results.get("machines", {}), machine_kind(description): description}
    results["shapes"] = {**results.get("shapes", {}), shape: about}
    results["rows"] = merged(results.get("rows", []), rows)
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if out == OUT:
        PAGE.write_text(page(results), encoding="utf-8")


def _results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.read_text("utf-8")) if out.exists() else {}
    return found


class Case:
    """One shape with one method: its files, and its sides.

    Args:
        shape: Name of the shape.
        method: Name of the modules that train.
        work: Folder for models and bundles; what it contains is used again.
        options: Of the command.
    """

    def __init__(self, shape: str, method: str, work: Path, options: argparse.Namespace) -> None:
        self.shape, self.method, self.options = shape, method, options
        self.work, self.folder = work, work / shape / method
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = work / shape / "model"
        self._records: dict[str, dict[str, Any]] = {}

    def parts(self, kept: Sequence[Row] = ()) -> Iterator[list[Row]]:
        """Run each length, and each limited run of the first one; yield their rows as soon as they are measured.

        Args:
            kept: Rows that are not measured again; those with errors, of other machines and of other threads are.
        """
        shape, first = SHAPES[self.shape], self.method == next(iter(METHODS))
        lengths = self.options.lengths or (shape.lengths if first else shape.lengths[:1])
        limits = self.options.limits if self.options.limits is not None else shape.limits if first else ()
        for length in lengths:
            missing = self._missing(kept, self.options.sides, length)
            if missing:  # those that take turns are measured together
                yield self._turns(missing if self.options.alone else self.options.sides, length)
            for limit in limits if length == lengths[0] else ():
                names = self._missing(kept, self.options.limited, length, limit)
                yield [self._limited(name, limit, length) for name in names if "error" not in self._made(name)]

    def _missing(self, kept: Sequence[Row], names: Sequence[str], length: int, limit: int | None = None) -> list[str]:
        """Return the sides without a row of this length and limit."""
        wanted = {name: self._key(name, length, "") | {"limit_mb": limit} for name in names}
        fixed = (*KEY, "threads", "machine")
        found = [tuple(row.get(name) for name in fixed) for row in kept if "error" not in row]
        return [name for name, key in wanted.items() if tuple(key[part] for part in fixed) not in found]

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """Counts of the model's parameters; the model is written first."""
        self._make("model", self.model, ROOT)
        counts: dict[str, Any] = json.loads((self.model / DESCRIPTION).read_text("utf-8"))
        return counts

    def _batch(self, length: int) -> Path:
        path = self.folder / f"batch-{length}.npz"
        ids = np.random.default_rng(0).integers(0, self.about["vocabulary"], (1, length))
        np.savez(path, allow_pickle=False, input_ids=ids, attention_mask=np.ones_like(ids), labels=ids)
        return path

    def _turns(self, sides: Sequence[str], length: int) -> list[Row]:
        """Run the sides in turn, or one after another."""
        batch, made = self._batch(length), {name: self._made(name) for name in sides}
        names = [name for name in sides if "error" not in made[name]]
        groups = [[name] for name in names] if self.options.alone else [names]
        finished: dict[str, Running] = {}
        run = time.strftime("%Y-%m-%d %H:%M:%S")
        for group in groups:
            print(f"{self.shape}, {self.method}, 1 x {length}: {', '.join(group)}", file=sys.stderr, flush=True)
            running = [self._opened(name, batch) for name in group]
            take_turns([side for side in running if side.failure is None], self.options.rounds, 1, warm_up=0)
            for side in running:
                if side.failure is None:
                    side.finish()
            finished |= {side.name: side for side in running}
        oracle = finished[TORCH].losses if TORCH in finished and finished[TORCH].failure is None else []
        rows = []
        for name in sides:
            key = self._key(name, length, run) | ({"alone": True} if self.options.alone else {})
            if name in finished:
                rows.append(row_of(key, finished[name], made[name], self.about, oracle))
            else:
                rows.append({**key, "error": made[name]["error"]})
            print(f"  {_line(rows[-1])}", file=sys.stderr, flush=True)
        return rows

    def _limited(self, name: str, limit: int, length: int) -> Row:
        """Run a side by itself within a limit of memory, with cold files."""
        key = self._key(name, length, time.strftime("%Y-%m-%d %H:%M:%S")) | {"limit_mb": limit}
        try:
            group = Limit(limit)
        except OSError as error:
            return {**key, "error": f"no control group can be made here: {error}"}
        with group:
            forget_files(self._target(name))
            side = self._opened(name, self._batch(length), {GROUP: str(group.processes)})
            for _ in range(self.options.rounds):
                if side.failure is None:
                    side.turn(1)
            if side.failure is None:
                side.finish()
        row = row_of(key, side, self._made(name), self.about, [])
        print(f"  {_line(row)}", file=sys.stderr, flush=True)
        return row

    def _opened(self, name: str, batch: Path, more: dict[str, str] | None = None) -> Running:
        """Start a side, open it, and take its first step. Files are in the page cache unless it is limited."""
        side, target = SIDES[name], self._target(name)
        if more is None:
            warm_files(target)
        arguments = [target, batch, self.options.threads, *([] if side.kind else [self.method])]
        variables = environment(self._tree(name), self.work) | (more or {})
        running = start(name, command(side.module, *arguments), self.folder, variables)
        running.figures |= running.ask("open")
        if running.failure is None:
            running.turn(1)
        if running.failure is None:
            running.figures["first_s"] = round(running.times.pop() / 1e3, 4)
        return running

    def _key(self, name: str, length: int, run: str) -> dict[str, Any]:
        kind = machine_kind(machine.describe())
        return {
            "shape": self.shape,
            "method": self.method,
            "length": length,
            "side": name,
            "threads": self.options.threads,
            "machine": kind,
            "run": run,
        }

    def _target(self, name: str) -> Path:
        if SIDES[name].kind is None:
            return self.model
        return (self.folder if SIDES[name].trains else self.model.parent) / name

    def _tree(self, name: str) -> Path:
        return self.options.baseline if SIDES[name].baseline else ROOT

    def _made(self, name: str) -> dict[str, Any]:
        """Write what the side reads, once; ``error`` says why that failed."""
        side = SIDES[name]
        if side.kind is None:
            return {}
        if name not in self._records:
            assert self.about
            self._records[name] = self._make(side.kind, self._target(name), self._tree(name))
        return self._records[name]

    def _make(self, kind: str, out: Path, tree: Path) -> dict[str, Any]:
        record = out.with_name(f"{out.name}.json")
        if record.exists():
            found: dict[str, Any] = json.loads(record.read_text("utf-8"))
            return found
        print(f"{self.shape}, {self.method}: writing {out.name}", file=sys.stderr, flush=True)
        arguments = command("benchmarks.llm.making", kind, self.shape, self.method, self.model, out)
        variables = environment(tree, self.work)
        with (out.parent / f"{out.name}.log").open("w+", encoding="utf-8") as log:
            done = subprocess.run(
                arguments, env={**os.environ, **variables}, cwd=self.work, stdout=subprocess.PIPE,
                stderr=log, text=True, check=False,
            )  # fmt: skip
            log.seek(0)
            output = log.read()
        if done.returncode:
            return {"error": _reason(output) or f"exit code {done.returncode}"}
        made: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        record.write_text(json.dumps(made), encoding="utf-8")
        return made


def _reason(output: str) -> str:
    """Return the first line of the error after the last traceback of a process's output."""
    lines = output.rpartition("Traceback (most recent call last):")[2].splitlines()
    return next((line for line in lines if line.strip() and not line.startswith(" ")), "")


def _line(row: Row) -> str:
    if "error" in row:
        return f"{row['side']}: {row['error']}"
    limit = f" within {row['limit_mb']} MB" if row.get("limit_mb") else ""
    return (
        f"{row['side']}{limit}: {row['s_per_step']} s, first {row['first_s']}, open {row['open_s']};"
        f" {row['anon_mb']} MB anonymous, {row['file_mb']} MB of files; {row['gop_per_s']} GOP/s;"
        f" {row['read_mb_per_step']} MB read; losses {row.get('losses', '-')}"
    )


@contextlib.contextmanager
def _work(given: Path | None) -> Iterator[Path]:
    """Yield the folder for models and bundles: a temporary one, unless one is named, which stays."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llm", description=__doc__)
    measured = [name for name in SHAPES if name not in ("tiny", "qwen3-1.7b")]
    parser.add_argument("--shapes", nargs="*", default=measured, choices=list(SHAPES), help="rows of others are kept")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), help="modules with LoRA")
    parser.add_argument("--lengths", nargs="*", type=int, help="tokens of a sequence; by default those of the shape")
    parser.add_argument("--sides", nargs="*", choices=list(SIDES), help="by default all")
    parser.add_argument("--baseline", type=Path, help="another checkout of edgepeft, for the side edgepeft-before")
    parser.add_argument("--limits", nargs="*", type=int, help="limits of memory in MB; by default those of the shape")
    parser.add_argument(
        "--limited", nargs="*", default=["edgepeft-int8"], choices=_DEVICE, help="sides that run within limits too"
    )
    parser.add_argument("--resume", action="store_true", help="measure only what the results lack")
    parser.add_argument("--alone", action="store_true", help="one side after another")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side after the first")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="of every side")
    parser.add_argument("--work", type=Path, help="folder that keeps models and bundles, and is used again")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    options.sides = options.sides or list(default_sides(options.baseline))
    if options.baseline is None and any(SIDES[name].baseline for name in options.sides):
        parser.error(f"{BASELINE} requires --baseline.")
    options.baseline = None if options.baseline is None else options.baseline.resolve()
    return options


if __name__ == "__main__":
    main()
