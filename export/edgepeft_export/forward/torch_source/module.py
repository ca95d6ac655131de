"""Exports a torch module as a forward graph. The trainable parameters become inputs *before* the export.

Lifted that early, no optimizer of the exporter can fold them into constants, merge equal ones, or rename them.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgepeft_export.errors import (
    BadExampleInputs,
    ExportFailed,
    FixedDimension,
    ForwardError,
    NothingTrains,
    UnknownOutput,
    WrongParameterDtype,
)
from edgepeft_export.forward.graph import Forward
from edgepeft_export.forward.torch_source import detach as torch_detach
from edgepeft_export.forward.torch_source import recurrent as torch_recurrent
from edgepeft_export.forward.torch_source.detach import KeepDetach
from edgepeft_export.forward.torch_source.recurrent import KeepRecurrent
from edgepeft_export.forward.torch_source.reference import Function, Reference, Tensors, array, verified
from edgepeft_export.forward.torch_source.shared_storage import View, views_of, with_views
from edgepeft_export.forward.torch_source.source import Reads, source_of
from edgepeft_export.graph.shapes import Dim, dims_of
from edgepeft_export.losses import FIRST_LOGITS
from edgepeft_export.opset import OPSET
from edgepeft_export.passes.pipeline import tidy, widen

ExampleInputs: TypeAlias = Mapping[str, Tensor] | Sequence[Tensor] | Tensor
DynamicAxes: TypeAlias = Mapping[str, Mapping[int, str]]


def from_torch(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    dynamic_axes: DynamicAxes | None = None,
    outputs: Sequence[str] | None = None,
) -> Forward:
    """Export a module. Parameters with ``requires_grad`` become graph inputs with their own names.

    Dropout is off and BatchNorm uses its running statistics, as in ``model.eval()``.

    Args:
        model: any module, also a ``peft.PeftModel``. Its trainable parameters are float32.
        example_inputs: arguments of ``forward``, by name or in order. Sizes are free where they are dynamic.
        dynamic_axes: ``{input: {axis: name}}`` of the sizes that may change from call to call. Default: axis 0 is
            ``batch``, and axis 1 of an integer tensor of rank 2 (token ids, masks) is ``sequence``, of an input
            ``decoder_…`` it is ``decoder_sequence``.
        outputs: names of the outputs to keep. Default: ``logits`` where the model has it, else all.

    Raises:
        ForwardError: nothing trains, an input does not fit ``forward``, or torch cannot export the model.
    """
    inputs = name_inputs(model, example_inputs)
    views = views_of(model)
    trainable = {name: tensor for name, tensor in _trainable(model).items() if name not in views}
    axes = default_dynamic_axes(inputs) if dynamic_axes is None else dynamic_axes
    with _inference(model):
        traced = distinct_sizes(inputs, axes)
        with Reads() as reads:
            names = _output_names(model, traced, outputs)
        program = export(_Lifted(model, names, views), traced, trainable, axes)
    called = [f"{name}.output" if name in inputs or name in trainable else name for name in names]
    graph = _rename(program, list(inputs), list(trainable), called)
    _check_dynamic(graph.graph, axes)
    half = widen(graph)
    tidy(graph)
    _name_outputs(graph.graph, called)  # again: equal outputs may have become one
    _name_folded_weights(graph.graph, model)
    parameters = {name: array(tensor).copy() for name, tensor in trainable.items()}
    forward = Forward(graph, tuple(inputs), parameters, source=source_of(model, trainable, views, reads))
    with _inference(model):
        return verified(forward, Reference(_function(model, names, views), inputs, traced, trainable, axes, half))


def _function(model: nn.Module, names: Sequence[str], views: Mapping[str, View]) -> Function:
    """The module as a function that returns its outputs by name."""

    def function(inputs: Tensors, trainable: Tensors) -> dict[str, Tensor]:
        with _set(model, with_views(trainable, views)):
            named = _named_outputs(model(**inputs))
        return {name: named[name] for name in names}

    return function


@contextlib.contextmanager
def _set(model: nn.Module, trainable: Tensors) -> Iterator[None]:
    """Set parameters, and buffers that are views of them, to other values in a context."""
    named = (*model.named_parameters(), *model.named_buffers())
    parameters = {name: tensor for name, tensor in named if name in trainable}
    before = {name: p.data for name, p in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = trainable[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = before[name]


def name_inputs(model: nn.Module, example_inputs: ExampleInputs) -> dict[str, Tensor]:
    """Example inputs by the names of the arguments of ``forward``."""
    if isinstance(example_inputs, Mapping):
        named: dict[str, Tensor] = dict(example_inputs)
    else:
        values = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)
        arguments = [
            p.name
            for p in inspect.signature(_called(model).forward).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        if len(arguments) < len(values):
            raise BadExampleInputs(
                f"{len(values)} example inputs do not fit {type(model).__name__}.forward({', '.join(arguments)}).",
                context=None,
                hint="give the example inputs as a dict: {name of the argument: tensor}.",
            )
        named = dict(zip(arguments, values, strict=False))
    wrong = [name for name, value in named.items() if not isinstance(value, Tensor)]
    if wrong or not named:
        raise BadExampleInputs(
            "Example inputs must be torch tensors, at least one.",
            context=f"not a tensor: {', '.join(wrong)}" if wrong else "none were given",
            hint="give a dict {name of the argument of forward: tensor}.",
        )
    return named


def _called(model: nn.Module) -> nn.Module:
    """The module whose ``forward`` names the arguments. A PeftModel's own arguments have no names."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def default_dynamic_axes(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """Axis 0 is ``batch``; axis 1 of an integer or bool tensor of rank 2 is ``sequence``, or ``decoder_sequence``."""
    axes: dict[str, dict[int, str]] = {}
    for name, tensor in inputs.items():
        axes[name] = {0: "batch"} if tensor.ndim else {}
        if tensor.ndim == 2 and not tensor.is_floating_point():
            axes[name][1] = "decoder_sequence" if name.startswith("decoder_") else "sequence"
    return axes


class _Lifted(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """The model as a function of its inputs and its trainable parameters."""

    def __init__(self, model: nn.Module, outputs: Sequence[str], views: Mapping[str, View]) -> None:
        super().__init__()
        self.model = model
        self.outputs = tuple(outputs)
        self.views = dict(views)
        self.train(model.training)

    def forward(self, inputs: dict[str, Tensor], trainable: dict[str, Tensor]) -> tuple[Tensor, ...]:
        with KeepDetach(list(trainable.values())), KeepRecurrent():
            result = torch.func.functional_call(self.model, with_views(trainable, self.views), kwargs=inputs)
        named = _named_outputs(result)
        return tuple(named[name] for name in self.outputs)


def _named_outputs(result: object) -> dict[str, Tensor]:
    if isinstance(result, Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        return {str(name): value for name, value in result.items() if isinstance(value, Tensor)}
    if isinstance(result, Sequence):
        return {f"output_{i}": value for i, value in enumerate(result) if isinstance(value, Tensor)}
    return {}


def _output_names(model: nn.Module, inputs: Mapping[str, Tensor], wanted: Sequence[str] | None) -> list[str]:
    try:
        with torch.no_grad():
            there = list(_named_outputs(model(**inputs)))
    except (TypeError, RuntimeError, ValueError, IndexError) as error:
        raise BadExampleInputs(
            f"{type(model).__name__} does not run on the example inputs.",
            context=f"inputs: {describe(inputs)}\n{type(error).__name__}: {_first_line(error)}",
            hint="give example inputs that model(**example_inputs) accepts.",
        ) from error
    if wanted is None:
        wanted = ["logits"] if "logits" in there else there
    if "logits" in wanted and FIRST_LOGITS in there and FIRST_LOGITS not in wanted:
        wanted = [*wanted, FIRST_LOGITS]  # which the loss needs
    missing = [name for name in wanted if name not in there]
    if missing:
        raise UnknownOutput(
            f"The model has no output named {', '.join(missing)}.",
            context=f"its outputs: {', '.join(there)}",
            hint="choose among these.",
        )
    return list(wanted)


_TRAINS = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that may train. Half precision becomes float32 with the graph."""


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise NothingTrains(
            f"No parameter of {type(model).__name__} has requires_grad.",
            context=None,
            hint="choose a method (lora, bitfit, head, freeze, full), or set requires_grad on what should train.",
        )
    wrong = [f"{name} ({tensor.dtype})" for name, tensor in trainable.items() if tensor.dtype not in _TRAINS]
    if wrong:
        raise WrongParameterDtype(
            "Trainable parameters must be float32, or of half precision.",
            context=", ".join(wrong[:5]) + (" …" if len(wrong) > 5 else ""),
            hint="call model.float() before preparing it.",
        )
    return trainable


@contextlib.contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without a key/value cache during the export. Everything is restored."""
    modes = {module: module.training for module in model.modules()}
    config = getattr(model, "config", None)
    had_cache = getattr(config, "use_cache", None)
    try:
        model.eval()
        if config is not None and had_cache:
            config.use_cache = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        if config is not None and had_cache:
            config.use_cache = had_cache


def distinct_sizes(inputs: Mapping[str, Tensor], axes: DynamicAxes) -> dict[str, Tensor]:
    """Repeat the example along dynamic axes until each has a size of its own, and none has size 1.

    torch.export treats sizes 0 and 1 as constants, and may treat two axes of one size as the same.
    """
    sizes: dict[str, int] = {}
    fixed = {size for name, t in inputs.items() for axis, size in enumerate(t.shape) if axis not in axes.get(name, {})}
    for name, tensor in inputs.items():
        for axis, symbol in axes.get(name, {}).items():
            sizes[symbol] = max(2, sizes.get(symbol, 0), tensor.shape[axis])
    used = set(fixed)
    for symbol in sorted(sizes, key=lambda s: -sizes[s]):
        while sizes[symbol] in used:
            sizes[symbol] += 1
        used.add(sizes[symbol])
    grown = {}
    for name, tensor in inputs.items():
        for axis, symbol in axes.get(name, {}).items():
            tensor = tensor.index_select(axis, torch.arange(sizes[symbol]) % tensor.shape[axis])
        grown[name] = tensor
    return grown


def export(lifted: nn.Module, inputs: dict[str, Tensor], trainable: dict[str, Tensor], axes: DynamicAxes) -> ir.Model:
    """Export ``lifted(inputs, trainable)``. The graph's inputs have that order."""
    dynamic = {
        "inputs": {name: dict(axes.get(name, {})) for name in inputs},
        "trainable": {name: {} for name in trainable},
    }
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                lifted,
                kwargs={"inputs": inputs, "trainable": trainable},
                dynamic_shapes=dynamic,
                dynamo=True,
                custom_translation_table={**torch_detach.TRANSLATION, **torch_recurrent.TRANSLATION},
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever the traced model raises
        cause = _root_cause(error)
        fixed = _FIXED.search(str(cause))
        if fixed is not None:
            name, axis = fixed["input"], int(fixed["axis"])
            raise _fixed_dimension(name, axis, axes[name][axis], int(fixed["size"])) from error
        raise ExportFailed(
            "torch.onnx could not export the model.",
            context=f"{type(cause).__name__}: {_first_line(cause)}",
            hint="check that torch.export.export(model, ...) accepts it, or prepare an .onnx file that you exported.",
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert program is not None
    model: ir.Model = program.model
    _name_dimensions(model.graph, inputs, axes)
    return model


def _name_dimensions(graph: ir.Graph, inputs: Mapping[str, Tensor], axes: DynamicAxes) -> None:
    """Name symbolic dimensions as the caller does. The exporter invents names where inputs share one."""
    names: dict[Dim, Dim] = {}
    for value, name in zip(graph.inputs, inputs, strict=False):  # the trainable inputs come after, with fixed shapes
        for axis, symbol in axes.get(name, {}).items():
            dim = dims_of(value)[axis]
            if isinstance(dim, str):
                names[dim] = symbol
    for value in ir.convenience.create_value_mapping(graph).values():
        if value.shape is not None:
            value.shape = ir.Shape([names.get(dim, dim) for dim in dims_of(value)])


def _rename(model: ir.Model, inputs: Sequence[str], trainable: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """Restore the names of inputs, parameters and outputs, and name frozen tensors as in the module's state."""
    graph = model.graph
    assert len(graph.inputs) == len(inputs) + len(trainable)
    for value in list(graph.initializers.values()):
        if value.name is not None and value.name.startswith("model."):
            _rename_initializer(graph, value, value.name.removeprefix("model."))
    reserved = {*inputs, *trainable, *outputs}
    for node in graph:
        for value in node.outputs:
            if value.name in reserved:
                value.name = f"{value.name}.inner"
    for value, name in zip(graph.inputs, [*inputs, *trainable], strict=True):
        value.name = name
    _name_outputs(graph, outputs)
    return model


def _name_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    """Name the outputs. One that is also an input, or is returned twice, gets a node of its own."""
    seen: set[ir.Value] = set()
    for index, (value, name) in enumerate(zip(list(graph.outputs), names, strict=True)):
        if value in seen or value.producer() is None:
            node = ir.node("Identity", [value])
            graph.append(node)
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            value = graph.outputs[index] = node.outputs[0]
        seen.add(value)
        value.name = name


def _rename_initializer(graph: ir.Graph, value: ir.Value, name: str) -> None:
    if name not in graph.initializers:
        value.name = name


def _name_folded_weights(graph: ir.Graph, model: nn.Module) -> None:
    """Find the matrices that the exporter folded to transposed constants, and name them ``<parameter>.T``."""
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim == 2}
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in state.items():
        by_shape.setdefault(tuple(reversed(tensor.shape)), []).append(name)
    for value in list(graph.initializers.values()):
        if value.name in state or value.const_value is None or len(value.const_value.shape) != 2:
            continue
        folded = value.const_value.numpy()
        for name in by_shape.get(folded.shape, ()):
            if _is_transposed(folded, state[name]):
                _rename_initializer(graph, value, f"{name}.T")
                break


def _is_transposed(matrix: NDArray[np.generic], tensor: Tensor) -> bool:
    other = array(tensor).T
    return matrix.dtype == other.dtype and bool(np.array_equal(matrix[0], other[0]) and np.array_equal(matrix, other))


def _check_dynamic(graph: ir.Graph, axes: DynamicAxes) -> None:
    for value in graph.inputs:
        for axis, symbol in axes.get(str(value.name), {}).items():
            assert value.shape is not None
            size = value.shape[axis]
            if isinstance(size, int):
                raise _fixed_dimension(str(value.name), axis, symbol, size)


def _fixed_dimension(name: str, axis: int, symbol: str, size: int) -> ForwardError:
    return FixedDimension(
        f"The model fixes axis {axis} ({symbol}) of input {name!r} to {size}.",
        context="Its forward does something that only this size allows.",
        hint=f"leave the axis out of dynamic_axes, or write the model so that {symbol} may change.",
    )


def describe(inputs: Mapping[str, Tensor]) -> str:
    """Names, dtypes and shapes, for messages."""
    return ", ".join(f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in inputs.items())


_FIXED = re.compile(
    r"static shape of (?P<size>\d+) for dimension inputs\['inputs'\]\['(?P<input>[^']+)'\]\.shape\[(?P<axis>\d+)\]"
)
"""torch.export's message for an axis that should be free and is not."""


def _root_cause(error: BaseException) -> BaseException:
    """The cause of the exporter's own error, which has many lines about itself."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["(no message)"])[0]
