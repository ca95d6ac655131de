"""Run a notebook's cells in one namespace, and collect what each shows."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
Json = dict[str, Any]


def read(path: Path) -> Json:
    """Return a notebook."""
    content: Json = json.loads(path.read_text("utf-8"))
    return content


def write(path: Path, notebook: Json) -> None:
    """Write a notebook as Jupyter does."""
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


def run(notebook: Json) -> Json:
    """Run the code cells in the current folder, and return the notebook with their outputs."""
    scope: dict[str, object] = {}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            cell = {**cell, "execution_count": count, "outputs": _outputs("".join(cell["source"]), count, scope)}
        cells.append(cell)
    return {**notebook, "cells": cells}


def _outputs(source: str, count: int, scope: dict[str, object]) -> list[Json]:
    """Run a cell. Its last expression is shown, as in Jupyter."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    shown: object = None
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
        exec(compile(tree, f"cell {count}", "exec"), scope)
        if isinstance(last, ast.Expr):
            shown = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), scope)
    text = out.getvalue()
    outputs: list[Json] = []
    if text:
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if shown is not None:
        outputs.append(
            {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": _data(shown)}
        )
    return outputs


def _data(shown: object) -> Json:
    """Return the forms of a value that Jupyter would show."""
    data: Json = {"text/plain": repr(shown).splitlines(keepends=True)}
    html = getattr(shown, "_repr_html_", None)
    if html is not None:
        data["text/html"] = str(html()).splitlines(keepends=True)
    figure = getattr(shown, "figure", None)
    if figure is not None:
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=60)
        data["image/png"] = base64.b64encode(picture.getvalue()).decode()
    return data
