"""Public names of a package, imported on first use and declared once: by the imports of its ``__init__.pyi``."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path


def names_of(file: str, others: str = "") -> tuple[list[str], Callable[[str], object]]:
    """Return ``__all__`` and ``__getattr__`` of the package whose ``__init__.py`` is ``file``.

    ``__init__.pyi`` beside it contains only lines such as ``from package.module import Name as Name``, which type
    checkers and editors read too. A class that it does not name is looked up in the module ``others``.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text("utf-8"))
    sources = {
        alias.asname or alias.name: (str(line.module), alias.name)
        for line in stub.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }

    def load(name: str) -> object:
        module, own = sources.get(name, (others if name[:1].isupper() else "", name))
        if not module:
            raise AttributeError(f"module {Path(file).parent.name!r} has no attribute {name!r}")
        return getattr(import_module(module), own)

    return sorted(sources), load
