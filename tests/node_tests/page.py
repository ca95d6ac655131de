"""What the node tests came to: a list that the tests compare with, and ``docs/OPERATORS.md``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import onnx
import onnxruntime as ort

from edgepeft_export.opset import OPSET
from tests.node_tests.backward import WAYS
from tests.node_tests.oracle import CRASH, REFUSED, RIGHT, WRONG, Result, verdict

LIST = Path(__file__).parent / "results.tsv"
PAGE = Path(__file__).parents[2] / "docs" / "OPERATORS.md"


@dataclass(frozen=True)
class Row:
    """A node test with the result of each way."""

    name: str
    op: str
    results: Mapping[str, Result]


def write_list(rows: Sequence[Row]) -> None:
    """One line per test: its name, its operator and the result of each way."""
    lines = ["\t".join(("test", "operator", *WAYS))]
    lines += ["\t".join((row.name, row.op, *(_short(row.results[way]) for way in WAYS))) for row in rows]
    LIST.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_list() -> dict[str, dict[str, str]]:
    """The result of each way as it was written, by the test's name."""
    lines = LIST.read_text("utf-8").splitlines()[1:]
    return {name: dict(zip(WAYS, results, strict=True)) for name, _, *results in (line.split("\t") for line in lines)}


def _short(result: Result) -> str:
    return f"{result.status} {result.code}".strip()


def page(rows: Sequence[Row], of_all: int) -> str:
    """The text of ``docs/OPERATORS.md``."""
    return "\n".join((*_head(rows, of_all), *_table(rows))) + "\n"


def _head(rows: Sequence[Row], of_all: int) -> Iterator[str]:
    verdicts = Counter(verdict(row.results).status for row in rows)
    yield from (
        "# Operators and gradients",
        "",
        f"Written by `python -m tests.node_tests --page docs/OPERATORS.md` on {date.today().isoformat()}, with",
        f"onnx {onnx.__version__} and onnxruntime {ort.__version__}; bundles have opset {OPSET}.",
        "",
        f"Of the {of_all} node tests of ONNX's backend suite, {len(rows)} have float inputs and float outputs and run",
        "on stock ONNX Runtime with the same result each time. For each, edgepeft builds the gradient of a random",
        "projection of all float outputs with respect to all float inputs. The command compares it with central finite",
        "differences, in float64 where ONNX Runtime or ONNX's reference implementation computes so. Where they differ",
        "it tries again at inputs nearby, because the suite's may lie on a kink or a tie.",
        "",
        f"**{verdicts[RIGHT]} right, {verdicts[REFUSED]} refused with an error, {verdicts[WRONG]} wrong, "
        f"{verdicts[CRASH]} crashes.** A test is right if one of these is right and none is wrong:",
        "",
        "| differentiated | right | refused | wrong | crash |",
        "|---|---|---|---|---|",
    )
    for way, title in TITLES.items():
        counts = Counter(row.results[way].status for row in rows)
        yield f"| {title} | {' | '.join(str(counts[status]) for status in (RIGHT, REFUSED, WRONG, CRASH))} |"
    yield ""


TITLES = {
    "file": "as `prepare` reads it from a file, float inputs trained, other inputs constants",
    "graph": "as it is, at its own operator set, all inputs known at run time",
    "free sizes": "the same with only ranks known",
}


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield from (
        "Tests of an operator's function body (`_expanded`) are counted apart.",
        "",
        "| operator | tests | right | refused | why |",
        "|---|---|---|---|---|",
    )
    for op in sorted({_title(row) for row in rows}, key=str.lower):
        own = [verdict(row.results) for row in rows if _title(row) == op]
        right = sum(result.status == RIGHT for result in own)
        reasons = Counter(f"`{result.code}`: {result.detail}" for result in own if result.status != RIGHT)
        why = "; ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
        yield f"| {op} | {len(own)} | {right} | {len(own) - right} | {why.replace('|', '/')} |"


def _title(row: Row) -> str:
    return f"{row.op}, function body" if "_expanded" in row.name else row.op
