"""A digest of a computation's inputs: modules, their tensors and settings, and the code of local functions.

It is a pickle that nobody reads, with the parts that pickle cannot write, or not twice alike, written by content.
"""

from __future__ import annotations

import copyreg
import hashlib
import marshal
import pickle
import sys
import weakref
from types import FunctionType, ModuleType
from typing import Any

import torch

Reduced = tuple[Any, tuple[Any, ...]]


class Undigested(Exception):
    """Something that has no content which could be written down."""


def digest(*values: object) -> str:
    """The same for the same content, in every process; another one as soon as a tensor, a setting or code differs."""
    into = _Hash()
    try:
        _Writer(into).dump(values)
    except Exception as error:  # pickling an object may raise any exception
        raise Undigested(f"{type(error).__name__}: {error}") from error
    return into.hash.hexdigest()


class _Hash:
    """A file that keeps only the digest of what is written to it."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)


class _Writer(pickle._Pickler):  # type: ignore[misc,name-defined]  # the C one asks for no override of a set or a string
    def __init__(self, file: _Hash) -> None:
        super().__init__(file, protocol=4)
        self._storages: dict[int, int] = {}
        self._defined: dict[int, int] = {}

    def memoize(self, obj: object) -> None:
        """Strings are written out each time: whether two equal ones are one object is an accident."""
        if type(obj) is not str:
            super().memoize(obj)

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, torch.Tensor):
            return self._tensor(obj)
        if isinstance(obj, torch.nn.Module):  # some of them refuse to be pickled
            return copyreg.__newobj__, (type(obj),), vars(obj)
        if isinstance(obj, property):
            return tuple, ((obj.fget, obj.fset, obj.fdel),)
        if isinstance(obj, weakref.ref):  # recurrent layers reference their weights so, too
            return tuple, ((obj(),),)
        if isinstance(obj, set | frozenset):
            return tuple, (sorted(obj, key=repr),)
        if isinstance(obj, ModuleType):
            return str, (f"module {obj.__name__}",)
        if isinstance(obj, FunctionType | type) and not _importable(obj):
            return self._definition(obj)
        return NotImplemented

    def _tensor(self, tensor: torch.Tensor) -> Reduced:
        """Its values, and which of the tensors so far it shares memory with."""
        storage = self._storages.setdefault(tensor.untyped_storage().data_ptr(), len(self._storages))
        values = hashlib.sha256(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()
        layout = (str(tensor.dtype), tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), storage)
        return tuple, ((type(tensor).__qualname__, layout, tensor.requires_grad, values),)

    def _definition(self, obj: FunctionType | type) -> Reduced:
        """A function or a class that cannot be imported: its code, and the objects that the code refers to."""
        if id(obj) in self._defined:
            return str, (f"definition {self._defined[id(obj)]}",)
        self._defined[id(obj)] = len(self._defined)
        return tuple, ((obj.__module__, obj.__qualname__, _code(obj) if isinstance(obj, FunctionType) else _body(obj)),)


def _importable(obj: FunctionType | type) -> bool:
    found: object = sys.modules.get(obj.__module__ or "")
    for name in obj.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is obj


def _code(function: FunctionType) -> tuple[object, ...]:
    code = function.__code__
    seen = {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return marshal.dumps(code), function.__defaults__, function.__kwdefaults__, cells, seen


_OF_EVERY_CLASS = {"__dict__", "__weakref__", "__module__", "__doc__", "__annotations__", "_abc_impl"}


def _body(kind: type) -> tuple[object, ...]:
    return kind.__bases__, {name: value for name, value in vars(kind).items() if name not in _OF_EVERY_CLASS}
