"""Read the blocks of a page, in their order.

A page says what a run of it needs in comments that no reader sees:

- ``<!-- blocks: given bert texts.csv -->``: files of the reader's own, written by ``given.py``.
- ``<!-- blocks: skip REASON -->``: the next block is only read.
- ``<!-- blocks: workstation -->``: the next blocks run where the first ones ran.

``pip install`` in a shell block, or in the paragraph before a block, names the environment of what follows. A ``text``
block right after another is its output. A Python block that begins with ``# name.py`` is that file.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ELSEWHERE = {"EXTENDING.md": "tests/test_extending.py lays its files over the packages"}
"""Pages that are run by other tests."""

_NOTE = re.compile(r"<!-- blocks: (\w+) ?(.*?) -->", re.S)
_INSTALL = re.compile(r"pip install ((?:[^`\n#]*)edgepeft[^`\n#&]*)")
_FILE = re.compile(r"# ([\w/]+\.py)\n")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: the page's path from the repository's root.
        line: the line of the page that the code begins in, from 1.
        output: what the page says that it prints, or ``None``.
        requirements: what ``pip install`` names for it; empty where nothing was installed yet.
        given: names of files that have to be there before it runs.
        skipped: why it does not run; empty where it does.
    """

    page: str
    line: int
    language: str
    code: str
    output: str | None
    requirements: tuple[str, ...]
    given: tuple[str, ...]
    skipped: str

    @property
    def file(self) -> str | None:
        """The name of the file that this block is, if it is one."""
        found = _FILE.match(self.code) if self.language == "python" else None
        return found and found[1]


def pages() -> list[Path]:
    """Every page with blocks but for those that are run by other tests."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if page.name not in ELSEWHERE and blocks(page)]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in their order.

    Raises:
        ValueError: A comment that begins with ``blocks:`` has another verb.
    """
    return list(_read(page.read_text("utf-8"), str(page.relative_to(ROOT))))


@dataclass(frozen=True)
class _Part:
    """A fenced block (with its language), or a paragraph (without one), and the line that its text begins in."""

    language: str | None
    text: str
    line: int


def _parts(lines: list[str]) -> Iterator[_Part]:
    """The fenced blocks and the paragraphs of a page."""
    start, language = 0, None
    for number, line in enumerate([*lines, ""]):
        if line.startswith("```"):
            yield _Part(language, "".join(f"{line}\n" for line in lines[start:number]), start + 1)
            start, language = number + 1, None if language is not None else line[3:].partition(" ")[0]
        elif not line.strip() and language is None:
            yield _Part(None, "".join(f"{line}\n" for line in lines[start:number]), start + 1)
            start = number + 1


def _read(text: str, page: str) -> Iterator[Block]:
    first: tuple[str, ...] | None = None
    coming = Block(page, 0, "", "", None, (), (), "")
    before: Block | None = None
    for part in _parts(text.split("\n")):
        if part.language in ("sh", "python"):
            if before is not None:
                yield before
            before = replace(_installed(coming, part) if not coming.skipped else coming, line=part.line)
            before = replace(before, language=part.language, code=part.text)
            coming = replace(before, given=(), skipped="")
            first = first or before.requirements
        elif part.language == "text" and before is not None:
            before = replace(before, output=part.text)
        elif part.text.strip():
            if before is not None:
                yield before
            before = None
            coming = _noted(_installed(coming, part), part, first or ())
    if before is not None:
        yield before


def _installed(block: Block, part: _Part) -> Block:
    """The block in the environment that ``pip install`` names, if it does."""
    found = _INSTALL.findall(part.text)
    return replace(block, requirements=tuple(shlex.split(found[0]))) if found else block


def _noted(block: Block, part: _Part, first: tuple[str, ...]) -> Block:
    """The block with what the comments of a paragraph say about it."""
    for verb, rest in _NOTE.findall(part.text):
        if verb == "given":
            block = replace(block, given=(*block.given, *rest.split()))
        elif verb == "skip" and rest:
            block = replace(block, skipped=rest)
        elif verb == "workstation":
            block = replace(block, requirements=first)
        else:
            raise ValueError(f"{block.page}:{part.line}: 'blocks: {verb} {rest}' is unknown.")
    return block
