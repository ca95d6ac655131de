"""A text data set that every machine has: the docstrings of Python's standard library, labelled by topic."""

from __future__ import annotations

import ast
import csv
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

TOPICS = {
    "files": "os posixpath ntpath pathlib shutil tempfile glob fileinput filecmp zipfile tarfile gzip lzma",
    "network": "socket ssl http urllib ftplib smtplib poplib imaplib telnetlib nntplib socketserver wsgiref",
    "text": "string re textwrap difflib email html json csv configparser gettext locale codecs quopri plistlib",
    "numbers": "decimal fractions statistics random numbers _pydecimal colorsys datetime calendar uuid heapq",
    "concurrency": "threading multiprocessing concurrent asyncio queue subprocess sched _threading_local contextvars",
    "language": "ast inspect dis tokenize pyclbr importlib pkgutil runpy code typing dataclasses enum lib2to3",
    "testing": "unittest doctest pdb bdb trace traceback cProfile profile pstats timeit tracemalloc logging warnings",
    "windows": "tkinter turtle turtledemo idlelib curses",
}
"""Topic to the modules and packages of the standard library that belong to it."""

Example = tuple[str, str]
"""A text and its topic."""


def collect() -> list[Example]:
    """Every distinct docstring of the topics' modules; those of two topics are left out."""
    topic_of: dict[str, str | None] = {}
    for topic, names in TOPICS.items():
        for name in names.split():
            for text in _docstrings(name):
                topic_of[text] = topic if topic_of.get(text, topic) == topic else None
    return [(text, topic) for text, topic in topic_of.items() if topic is not None]


def split(
    examples: list[Example], *, test_share: float = 0.25, similar: float = 0.5, seed: int = 0
) -> tuple[list[Example], list[Example]]:
    """Divide into train and test so that no text of one has a near-copy in the other.

    Texts whose sets of words overlap by more than ``similar`` (Jaccard) are near-copies; a chain of them goes to one
    side as a whole.
    """
    groups = _groups([text for text, _ in examples], similar)
    order = np.random.default_rng(seed).permutation(int(groups.max()) + 1)
    rank = np.argsort(order)[groups]
    by_rank = sorted(range(len(examples)), key=lambda i: (rank[i], i))
    size = round(test_share * len(examples))
    cut = rank[by_rank[size]]
    test = [examples[i] for i in by_rank if rank[i] < cut]
    train = [examples[i] for i in by_rank if rank[i] >= cut]
    return train, test


def closest(train: list[Example], test: list[Example]) -> float:
    """The largest word overlap (Jaccard) between a text of one side and a text of the other."""
    overlap = _jaccard([text for text, _ in train + test])
    return float(overlap[: len(train), len(train) :].max())


def write_csv(path: Path, examples: list[Example]) -> None:
    """Write columns ``text`` and ``label``."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(examples)


def _docstrings(name: str) -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib")) / name.replace(".", "/")
    files = sorted(root.rglob("*.py")) if root.is_dir() else [root.with_suffix(".py")]
    for file in files:
        if not file.is_file() or {"test", "tests", "idle_test"} & set(file.relative_to(root.parent).parts):
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8-sig", errors="replace"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = re.sub(r"\s+", " ", ast.get_docstring(node) or "").strip()
                if len(text) >= 30:
                    yield text[:600]


def _jaccard(texts: list[str]) -> np.ndarray:
    words = CountVectorizer(binary=True, token_pattern=r"\w+").fit_transform(texts).astype(np.float32)
    shared = (words @ words.T).toarray()
    sizes = np.asarray(words.sum(axis=1)).reshape(-1)
    return shared / np.maximum(sizes[:, None] + sizes[None, :] - shared, 1)


def _groups(texts: list[str], similar: float) -> np.ndarray:
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    return connected_components(csr_matrix(_jaccard(texts) > similar), directed=False)[1]
