"""Calls torch's exporter, and names its failures."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgepeft_export.errors import FixedDimension, ForwardError
from edgepeft_export.forward.torch_source.blocks import trace
from edgepeft_export.forward.torch_source.failures import Location, export_failed, fixed_sizes
from edgepeft_export.forward.torch_source.operators import detach as torch_detach
from edgepeft_export.forward.torch_source.operators import recurrent as torch_recurrent
from edgepeft_export.forward.torch_source.operators.decompose import decomposing_where_needed
from edgepeft_export.forward.torch_source.operators.shortcuts import shortcuts
from edgepeft_export.forward.torch_source.sizes import TracedSize, simplified, traced_sizes
from edgepeft_export.graph.shapes import Dim, dims_of
from edgepeft_export.opset import OPSET

ExampleInputs: TypeAlias = Mapping[str, Tensor] | Sequence[Tensor] | Tensor
DynamicAxes: TypeAlias = Mapping[str, Mapping[int, str]]

_TRANSLATION = {**torch_detach.TRANSLATION, **torch_recurrent.TRANSLATION, **trace.TRANSLATION}


@dataclass(frozen=True)
class Exported:
    """A graph of torch's exporter, and what its trace knows about each free size."""

    graph: ir.Model
    sizes: Mapping[str, TracedSize] = field(default_factory=dict)


def export(
    lifted: nn.Module, arguments: Mapping[str, Mapping[str, Tensor]], axes: DynamicAxes, called: str
) -> Exported:
    """Export a module. The graph's inputs have the order of the arguments.

    Args:
        lifted: its arguments are dictionaries of tensors.
        arguments: examples; those of ``inputs`` have free sizes.
        axes: the free axes of ``inputs``.
        called: what the module is called in messages.
    """
    inputs = arguments["inputs"]
    dynamic = {
        argument: {name: dict(axes.get(name, {})) if argument == "inputs" else {} for name in tensors}
        for argument, tensors in arguments.items()
    }
    fixed_at: Mapping[int, Location] = {}
    try:
        with (
            _quiet(),
            torch.no_grad(),
            shortcuts(),
            fixed_sizes(lifted) as fixed_at,
            decomposing_where_needed() as programs,
        ):
            program = torch.onnx.export(
                lifted,
                kwargs={argument: dict(tensors) for argument, tensors in arguments.items()},
                dynamic_shapes=dynamic,
                dynamo=True,
                custom_translation_table=_TRANSLATION,
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever the traced model raises
        cause = _root_cause(error)
        fixed = _FIXED.search(str(cause))
        if fixed is not None:
            name, axis = fixed["input"], int(fixed["axis"])
            size = int(fixed["size"])
            raise _fixed_dimension(name, axis, axes[name][axis], size, fixed_at.get(size)) from error
        raise export_failed(error, lifted, called) from error
    assert program is not None
    model: ir.Model = program.model
    sizes = traced_sizes(programs[-1], list(inputs), axes) if programs else {}
    _name_dimensions(model.graph, inputs, axes, sizes)
    return Exported(model, sizes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context in which torch and the exporter show nothing: of a failure they print the graph that was traced."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in ("torch", "onnxscript")]
    loggers = [logging.getLogger(name) for name in {*names, "torch", "torch.onnx", "onnxscript"}]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _name_dimensions(
    graph: ir.Graph, inputs: Mapping[str, Tensor], axes: DynamicAxes, sizes: Mapping[str, TracedSize]
) -> None:
    """Name symbolic dimensions as the caller does. The exporter invents names where inputs share one."""
    limits = {name: size.limits for name, size in sizes.items()}
    names: dict[Dim, Dim] = {}
    for value, name in zip(graph.inputs, inputs, strict=False):  # the trainable inputs come after, with fixed shapes
        for axis, symbol in axes.get(name, {}).items():
            dim = dims_of(value)[axis]
            if isinstance(dim, str):
                names[dim] = symbol
    for value in ir.convenience.create_value_mapping(graph).values():
        if value.shape is not None:
            value.shape = ir.Shape([simplified(names.get(dim, dim), limits) for dim in dims_of(value)])


def check_dynamic(graph: ir.Graph, axes: DynamicAxes) -> None:
    """Raise where an axis that should be free has a fixed size in the graph."""
    for value in graph.inputs:
        for axis, symbol in axes.get(str(value.name), {}).items():
            assert value.shape is not None
            size = value.shape[axis]
            if isinstance(size, int):
                raise _fixed_dimension(str(value.name), axis, symbol, size)


def _fixed_dimension(name: str, axis: int, symbol: str, size: int, location: Location | None = None) -> ForwardError:
    where = f" in module {location.module!r}" if location is not None and location.module else ""
    code = None if location is None else location.code
    return FixedDimension(
        f"The model fixes axis {axis} ({symbol}) of input {name!r} to {size}{where}: it runs for this size alone.",
        context=code,
        hint=one_length(symbol) + f" Or write the model so that {symbol} may change.",
    )


def one_length(symbol: str) -> str:
    """How a model is prepared for one size."""
    fixed = f"leave {symbol} out of dynamic_axes, so that its size is fixed"
    if symbol == "sequence":
        return f"pad all texts to one length (--fixed-length --max-length N), or {fixed}."
    return f"{fixed}."


_FIXED = re.compile(
    r"static shape of (?P<size>\d+) for dimension inputs\['inputs'\]\['(?P<input>[^']+)'\]\.shape\[(?P<axis>\d+)\]"
)
"""torch.export's message for an axis that should be free and is not."""


def _root_cause(error: BaseException) -> BaseException:
    """The cause of the exporter's own error, which has many lines about itself."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or ["(no message)"])[0]
