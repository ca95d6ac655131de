"""The layout of the repository: small folders, short test names, and tests that share helpers instead of each other."""

from __future__ import annotations

import ast
import posixpath
import re
import subprocess
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath

import grimp  # of import-linter
import pytest

ROOT = Path(__file__).parent.parent
LISTS = {  # folders whose files are entries of one list
    "edgepeft/cli/commands",
    "edgepeft/data/tasks/builtin",
    "edgepeft/methods",
    "export/edgepeft_export/autodiff/rules",
    "export/edgepeft_export/passes",
    "tests",
}


@pytest.fixture(scope="module")
def files() -> list[PurePosixPath]:
    """The source files that git tracks."""
    names = subprocess.check_output(["git", "ls-files", "*.py", "*.ts"], cwd=ROOT, text=True).splitlines()
    return [PurePosixPath(name) for name in names if (ROOT / name).exists()]


def test_no_folder_has_more_than_fifteen_files(files: list[PurePosixPath]) -> None:
    """A reader sees a package at a glance, unless it is a plain list."""
    counts = Counter(str(file.parent) for file in files if file.name != "__init__.py")
    assert {folder: n for folder, n in counts.items() if n > 15 and folder not in LISTS} == {}


def test_test_names_are_shorter_than_sixty_characters(files: list[PurePosixPath]) -> None:
    """A name fits a line of pytest's report."""
    names = re.compile(r"^\s*def (test_\w+)", re.M)
    long = [
        name for file in files if file.parts[0] == "tests" for name in names.findall((ROOT / file).read_text("utf-8"))
    ]
    assert [name for name in long if len(name) >= 60] == []


def test_tests_import_no_tests(files: list[PurePosixPath]) -> None:
    """Shared helpers are in ``tests/support`` or in a package next to the tests."""
    found = []
    for file in files:
        if file.parts[0] == "tests" and file.suffix == ".py":
            for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom) and re.search(r"(^|\.)test_\w+$", node.module or ""):
                    found.append(f"{file}: {node.module}")
    assert found == []


def test_docstrings_are_plain_markdown(files: list[PurePosixPath]) -> None:
    """The site shows them as Markdown, where the roles of Sphinx are noise."""
    roles = re.compile(r":(?:func|class|meth|data|mod|attr|exc|obj):`")
    assert [str(file) for file in files if roles.search((ROOT / file).read_text("utf-8"))] == []


def test_python_has_no_circle_of_imports() -> None:
    """Neither one that is closed inside a function, nor one among types alone, which import-linter leaves out."""
    graph = grimp.build_graph("edgepeft", "edgepeft_export", "edgepeft_runtime", cache_dir=None)
    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()


def test_typescript_has_no_circle_of_imports(files: list[PurePosixPath]) -> None:
    """Not among types either."""
    sources = {str(file) for file in files if file.suffix == ".ts" and "web/src" in str(file)}
    relative = re.compile(r"""(?:\bfrom|\bimport)[\s(]*["'](\.[^"']+)\.js["']""")
    imports = {
        name: {
            posixpath.normpath(f"{posixpath.dirname(name)}/{found}.ts")
            for found in relative.findall((ROOT / name).read_text("utf-8"))
        }
        for name in sources
    }
    assert set().union(*imports.values()) <= sources
    TopologicalSorter(imports).prepare()


def test_passes_name_their_pattern_and_algebra(files: list[PurePosixPath]) -> None:
    """A reader need not derive them from the code."""
    folders = ("export/edgepeft_export/passes", "export/edgepeft_export/fold")
    passes = [
        file
        for file in files
        if str(file.parent) in folders and file.stem not in ("__init__", "pipeline", "requantize")
    ]
    texts = {file.name: ast.get_docstring(ast.parse((ROOT / file).read_text("utf-8"))) or "" for file in passes}
    assert len(texts) > 10
    assert [name for name, text in texts.items() if not re.search(r"Pattern[\s\S]*algebra", text, re.I)] == []


def test_few_lines_give_up_types(files: list[PurePosixPath]) -> None:
    """``Any`` stands where a library is untyped or data may be anything."""
    packages = ("edgepeft", "export", "runtimes")
    texts = [(ROOT / file).read_text("utf-8") for file in files if file.parts[0] in packages and file.suffix == ".py"]
    assert sum(bool(re.search(r"\bAny\b", line)) for text in texts for line in text.splitlines()) < 150
