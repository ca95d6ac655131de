"""Draw the pictures of the documentation and write its measured tables: ``python -m benchmarks.pictures``.

It reads ``results.json``, ``methods.json`` and ``llm.json``, which the benches write, and measures nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.pictures.bounds import bounds, counted, failures
from benchmarks.pictures.deciding import table
from benchmarks.pictures.drawing import draw

FOLDER = Path(__file__).parents[1]
DOCS = FOLDER.parent / "docs"
RESULTS = {"steps": "results.json", "methods": "methods.json", "language_models": "llm.json"}
"""The file that each picture shows."""
BEGIN, END = "<!-- written by python -m benchmarks.pictures -->", "<!-- end -->"


def main() -> None:
    """Write all of them."""
    for name, file in RESULTS.items():
        print(draw(name, _read(file), DOCS / "pictures"))
    for path, lines in sections().items():
        path.write_text(with_section(path.read_text("utf-8"), lines), "utf-8")
        print(path)


def sections() -> dict[Path, list[str]]:
    """The lines of each page that come from the results."""
    return {DOCS / "guide" / "methods.md": table(_read("methods.json")), DOCS / "BENCHMARKS.md": measured()}


def measured() -> list[str]:
    """The machines, the bounds of ``make bench``, the sides that could not run, and the counts of instructions."""
    results = _read("results.json")
    parts = {"Bounds": bounds(results), "Sides that did not run": failures(results)}
    parts["Instructions on an emulated Cortex-A76"] = counted(
        json.loads((FOLDER / "instructions.json").read_text("utf-8"))
    )
    return [*machines(), *(line for name, lines in parts.items() for line in ("", f"## {name}", "", *lines))]


def machines() -> list[str]:
    """A line for each picture: the machine, and the versions, of its results."""
    lines = ["| picture | processor | cores | memory | onnxruntime | torch |", "|---|---|---:|---:|---|---|"]
    for name, file in RESULTS.items():
        results = _read(file)
        about = results["machine"] if "machine" in results else next(iter(results["machines"].values()))
        versions = results.get("versions") or about["versions"]
        processor = f"{about['processor']}, {', '.join(about['instructions'])}"
        lines.append(
            f"| {name.replace('_', ' ')} | {processor} | {about['cores']} | {about['memory_gb']:.0f} GB"
            f" | {versions['onnxruntime']} | {versions['torch']} |"
        )
    return lines


def with_section(page: str, lines: list[str]) -> str:
    """The page with these lines between the two comments."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([f"{before}{BEGIN}", "", *lines, "", f"{END}{after}"])


def _read(file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / file).read_text("utf-8"))
    return found


if __name__ == "__main__":
    main()
