"""Small HTML tables, as notebooks show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape


def html_table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    """Return a table with a row of headings."""
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def html_facts(title: str, facts: Mapping[str, object]) -> str:
    """Return a table with a fact in each row; empty facts are left out."""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in facts.items() if value
    )
    return f"<table><caption>{escape(title)}</caption>{rows}</table>"


def _row(tag: str, cells: Sequence[object]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(str(cell))}</{tag}>' for cell in cells)}</tr>"
