"""Says in one sentence why torch cannot export a model: in which module, at which line or operator, and a way out.

torch.export, its decompositions and the exporter raise dozens of classes of exceptions, whose messages are about
themselves and many lines long. What a user needs is in their tracebacks: the innermost module of the model that ran,
the last line of its code, and the operator that was translated.
"""

from __future__ import annotations

import contextlib
import linecache
import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import sympy
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from edgepeft_export.errors import ExportFailed

_LIBRARIES = ("torch", "onnx", "onnx_ir", "onnxscript", "sympy", "edgepeft_export", "edgepeft")
"""Packages whose lines are not the model's."""

_OPERATOR = re.compile(r"\b(?:torch\.ops\.)?(?:aten|prims|torchvision|torchaudio)(?:\.|::)[A-Za-z_]\w*")


@dataclass(frozen=True)
class _Kind:
    """A kind of failure.

    Attributes:
        known_by: found in the class and message of an exception of this kind.
        reason: completes ``torch.onnx cannot export module …:``; ``{operator}`` is the operator's name.
        hint: how the model is written instead.
    """

    known_by: re.Pattern[str]
    reason: str
    hint: str


def _kind(known_by: str, reason: str, hint: str) -> _Kind:
    return _Kind(re.compile(known_by, re.IGNORECASE), reason, hint)


_KINDS = (
    _kind(
        r"data.?dependent|DynamicOutputShape|UnbackedSymbol|unbacked|aten\._local_scalar_dense|nonzero",
        "a size or a branch in it depends on the values of tensors, and a graph has one way for all values",
        "compute it with torch.where and masks, or prepare an .onnx file that another exporter has written",
    ),
    _kind(
        r"complex", "it computes with complex numbers, which ONNX does not have", "compute with pairs of real numbers"
    ),
    _kind(
        r"No ONNX function|No decompositions|UnsupportedOperator|DispatchError|ConversionError",
        "ONNX has no form of the operator {operator}",
        "write it with other operators, or choose parts of the model without it",
    ),
    _kind(
        r"fake ?tensor|lifted_tensor|constant's list",
        "it keeps a tensor that it computes while it runs",
        "compute that tensor anew in each call, or store it as a buffer before the export",
    ),
    _kind(
        r"mutat|in-?place|alias|copy_",
        "it writes into a tensor that others read",
        "compute a new tensor instead of writing into one",
    ),
    _kind(
        r"autograd\.Function|HigherOrderOp|Unsupported\b|dynamo|ScriptObject|ScriptFunction|jit",
        "it calls code that torch cannot trace",
        "write it with torch's own operators",
    ),
    _kind(
        r"vmap|functorch|batching rule",
        "it maps a function over a batch in a way that torch cannot trace",
        "set attn_implementation to 'eager' in the model's configuration, or write the batch out",
    ),
    _kind(
        r"OutOfMemory|MemoryError|cannot allocate|not enough memory",
        "the memory of this machine is not enough",
        "give a smaller example, or prepare it on a machine with more memory",
    ),
)

_UNKNOWN = "torch.export must accept the model: try another attn_implementation, or prepare an .onnx file of it"


@dataclass(frozen=True)
class Location:
    """Where a model runs: the name of its innermost module, and the line of its code; empty where it is not known."""

    module: str = ""
    code: str | None = None


@contextlib.contextmanager
def fixed_sizes(model: nn.Module) -> Iterator[Mapping[int, Location]]:
    """Record where torch.export finds that the model runs for one size alone; yields the locations by size."""
    found: dict[int, Location] = {}
    names = _names(model)
    own = ShapeEnv._set_replacement

    def replace(environment: ShapeEnv, symbol: object, value: object, *arguments: object) -> None:
        if isinstance(value, sympy.Integer):
            found.setdefault(int(value), _location(names))
        own(environment, symbol, value, *arguments)

    ShapeEnv._set_replacement = replace
    try:
        yield found
    finally:
        ShapeEnv._set_replacement = own


def _location(names: Mapping[int, str]) -> Location:
    """The location of the code that runs now."""
    code = None
    for frame, line in traceback.walk_stack(None):
        if code is None and _is_of_the_model(frame):
            code = _line(frame.f_code.co_filename, line)
        module = names.get(id(frame.f_locals.get("self")))
        if module is not None:
            return Location(module, code)
    return Location()


def _names(model: nn.Module) -> dict[int, str]:
    exported = model.model if isinstance(getattr(model, "model", None), nn.Module) else model
    return {id(module): name for name, module in exported.named_modules() if name}


def export_failed(error: BaseException, model: nn.Module, called: str) -> ExportFailed:
    """The error for what torch's exporter raised.

    Args:
        error: of the exporter, with its causes.
        model: what was exported. Its modules are looked up in the traceback.
        called: what it is called in the message.
    """
    names = _names(model)
    errors = list(_causes(error))
    found = [_found(each.__traceback__, names) for each in reversed(errors)]
    module = next((each.module for each in found if each.module), "")
    code = next((each.code for each in found if each.code), None)
    text = "\n".join(f"{type(each).__name__}: {each}" for each in errors)
    operator = next((each.operator for each in found if each.operator), None) or _named_operator(text)
    kind = next((kind for kind in _KINDS if kind.known_by.search(text)), None)
    if kind is not None and "{operator}" in kind.reason and operator is None:
        kind = None
    what = f"module {module!r} of {called}" if module else called
    reason = f"it raises {type(errors[-1]).__name__}" if kind is None else kind.reason.format(operator=operator)
    return ExportFailed(
        f"torch.onnx cannot export {what}: {reason}.", context=code, hint=f"{_UNKNOWN if kind is None else kind.hint}."
    )


@dataclass(frozen=True)
class _Found:
    """The facts of a traceback: the name of a module, the line of code, and the operator; empty where it does not."""

    module: str = ""
    code: str | None = None
    operator: str | None = None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, the first one last."""
    yield error
    while error.__cause__ is not None:
        error = error.__cause__
        yield error


def _found(trace: TracebackType | None, names: Mapping[int, str]) -> _Found:
    module, code, operator = "", None, None
    while trace is not None:
        frame = trace.tb_frame
        module = names.get(id(frame.f_locals.get("self"))) or module
        if _is_of_the_model(frame):
            code = _line(frame.f_code.co_filename, trace.tb_lineno)
        node = frame.f_locals.get("node")
        if isinstance(node, fx.Node):
            module, operator = _module_of(node) or module, _named_operator(str(node.target)) or operator
        trace = trace.tb_next
    return _Found(module, code, operator)


def _module_of(node: fx.Node) -> str:
    """The module of an operator in torch's trace."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    name = str(stack[-1][0]) if stack and isinstance(stack[-1], tuple) else ""
    return "" if name == "model" else name.removeprefix("model.")  # of ``Lifted``


def _is_of_the_model(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package not in _LIBRARIES and not frame.f_code.co_filename.startswith("<")


def _line(file: str, number: int) -> str:
    code = linecache.getline(file, number).strip()
    return f"{Path(file).name}, line {number}" + (f": {code}" if code else "")


def _named_operator(text: str) -> str | None:
    match = _OPERATOR.search(text) or re.search(r"op='(?P<op>[\w.]+)'", text)
    return None if match is None else match[0].removeprefix("torch.ops.").removeprefix("op='").rstrip("'")


__all__ = ["Location", "export_failed", "fixed_sizes"]
