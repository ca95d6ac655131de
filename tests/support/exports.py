"""Exports of torch.onnx, each made once per run: many tests prepare the same few networks with other settings.

Only what torch does is kept. All of edgepeft's own code runs for every test. A kept export is found by a digest of all
that torch.onnx is given (the module's code, tensors and settings, the example, the sizes), and each test gets a copy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from tests.support.digest import Undigested, digest
from tests.support.store import Store

Export = Callable[..., Any]

_CODE = ("custom_translation_table",)
"""Arguments that are the same in each process of a run: functions of the library."""


class SharedExports:
    """Stands in for ``torch.onnx.export``."""

    def __init__(self, store: Store, export: Export) -> None:
        self.store = store
        self.made = 0
        self.on = True
        self._export = export

    def __call__(self, module: nn.Module, *positional: Any, **settings: Any) -> Any:
        # Calls with positional arguments write a file of their own; the library passes keywords.
        key = key_of(module, settings) if self.on and not positional else None
        if key is None:
            return self._export(module, *positional, **settings)
        fresh: list[Any] = []

        def make(path: Path) -> None:
            fresh.append(self._export(module, **settings))
            path.write_bytes(ir.to_proto(fresh[0].model).SerializeToString())

        path = self.store.get(key, make)
        self.made += len(fresh)
        return fresh[0] if fresh else SimpleNamespace(model=_read(path))


def key_of(module: nn.Module, settings: Mapping[str, Any]) -> str | None:
    """The key of an export; ``None`` if the module contains an object without content."""
    given = {name: value for name, value in settings.items() if name not in _CODE}
    try:
        return digest(module, given, torch.get_default_dtype())
    except Undigested:
        return None


def _read(path: Path) -> ir.Model:
    return ir.from_proto(onnx.load_model_from_string(path.read_bytes()))


@contextmanager
def shared(folder: Path) -> Iterator[SharedExports]:
    """Share exports through a folder while it is open; torch builds its tables of operators once."""
    from torch._export import utils
    from torch.onnx._internal.exporter import _decomp
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    exports = SharedExports(Store(folder), torch.onnx.export)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", exports)
        # torch builds these again for each export: more than half the time of a small model.
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        patch.setattr(utils, "_materialize_cpp_cia_ops", functools.cache(utils._materialize_cpp_cia_ops))
        patch.setattr(_decomp, "create_onnx_friendly_decomposition_table", _tables_once(_decomp))
        yield exports


def _tables_once(module: Any) -> Callable[[set[Any]], dict[Any, Any]]:
    """torch's function that lists decompositions. Each caller gets a copy, because the exporter removes entries."""
    made = functools.cache(module.create_onnx_friendly_decomposition_table)
    return lambda registered: dict(made(frozenset(registered)))
