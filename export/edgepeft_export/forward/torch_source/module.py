"""Exports a torch module as a forward graph. The trainable parameters become inputs *before* the export.

Lifted that early, no optimizer of the exporter can fold them into constants, merge equal ones, or rename them.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgepeft_export.errors import (
    BadExampleInputs,
    ForwardError,
    NothingTrains,
    UnknownOutput,
    VerificationError,
    WrongParameterDtype,
)
from edgepeft_export.forward.graph import Forward
from edgepeft_export.forward.torch_source.blocks.record import Recorder
from edgepeft_export.forward.torch_source.blocks.stack import Stack
from edgepeft_export.forward.torch_source.export import DynamicAxes, ExampleInputs, check_dynamic, first_line
from edgepeft_export.forward.torch_source.half import computing
from edgepeft_export.forward.torch_source.lifted import Module, graph_of, named_outputs
from edgepeft_export.forward.torch_source.naming import name_folded_weights, name_outputs
from edgepeft_export.forward.torch_source.reference import Function, Reference, Tensors, array, changed, verified
from edgepeft_export.forward.torch_source.shared_storage import View, views_of, with_views
from edgepeft_export.forward.torch_source.sizes import with_size
from edgepeft_export.forward.torch_source.source import Reads, hashed, read_tensors
from edgepeft_export.losses import FIRST_LOGITS
from edgepeft_export.passes.pipeline import tidy, widen


def from_torch(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    dynamic_axes: DynamicAxes | None = None,
    outputs: Sequence[str] | None = None,
    on_progress: Callable[[str], None] | None = None,
    again: bool = False,
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
        on_progress: called with a message before each slow step.
        again: whether another graph of the module was exported before. Its tensors are not described again, of its
            equal blocks one is traced, and it is compared with changed parameters alone.

    Raises:
        ForwardError: nothing trains, an input does not fit ``forward``, or torch cannot export the model.
    """
    inputs = name_inputs(model, example_inputs)
    views = views_of(model)
    trainable = {name: tensor for name, tensor in _trainable(model).items() if name not in views}
    axes = default_dynamic_axes(inputs) if dynamic_axes is None else dynamic_axes
    log = on_progress or _ignored
    log("running the model")
    with _inference(model):
        traced = distinct_sizes(inputs, axes)
        with computing(model), Reads() as reads, Recorder(model, traced, _sharing(views)) as recorder:
            names = _output_names(model, inputs, traced, outputs)
        exported = Module(model, traced, trainable, views, names, axes)
    source = None if again else hashed(read_tensors(model, trainable, views, reads))
    forward = _of_blocks(exported, recorder.stacks(compared=again), inputs, log, again=again)
    return forward if source is None else replace(forward, source=source.result())


def _of_blocks(
    exported: Module, stacks: Sequence[Stack], inputs: Tensors, log: Callable[[str], None], *, again: bool
) -> Forward:
    """Export a module from a few of its blocks, or whole.

    What differs from the module once its blocks are copied is traced whole, and the error is that of the whole.
    """
    if stacks:
        with contextlib.suppress(ForwardError, VerificationError):
            return _verified(exported, stacks, inputs, log, again=again)
    return _verified(exported, (), inputs, log, again=again)


def _ignored(_: str) -> None:
    pass


def _verified(
    exported: Module, stacks: Sequence[Stack], inputs: Tensors, log: Callable[[str], None], *, again: bool
) -> Forward:
    """Export a module, tidy the graph, and compare it with the module on ``inputs``."""
    log("exporting the forward graph")
    model, views, trainable = exported.model, exported.views, exported.trainable
    with _inference(model):
        made = graph_of(exported, stacks)
    graph = made.graph
    check_dynamic(graph.graph, exported.axes)
    half = widen(graph)
    tidy(graph)
    name_outputs(graph.graph, exported.called)  # again: equal outputs may have become one
    name_folded_weights(graph.graph, model)
    parameters = {name: array(tensor).copy() for name, tensor in trainable.items()}
    forward = Forward(graph, tuple(inputs), parameters)
    function = _function(model, exported.outputs, views)
    log("comparing the graph with the model")
    compared = changed(trainable) if again else trainable
    reference = Reference(function, inputs, exported.inputs, compared, exported.axes, made.sizes, half)
    with _inference(model):
        return verified(forward, reference)


def _sharing(views: Mapping[str, View]) -> list[str]:
    """Names of the tensors that share memory with one that trains. A block with such a tensor equals no other."""
    return [*views, *(view.owner for view in views.values())]


def _function(model: nn.Module, names: Sequence[str], views: Mapping[str, View]) -> Function:
    """The module as a function that returns its outputs by name."""

    def function(inputs: Tensors, trainable: Tensors) -> dict[str, Tensor]:
        with computing(model), _set(model, with_views(trainable, views)):
            named = named_outputs(model(**inputs))
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
    """Axis 0 is ``batch``; axis 1 of an integer or bool tensor of rank 2 is ``sequence``, or ``decoder_sequence``.

    An axis 0 whose size differs from the first one (the tokens of all bags, and where each bag begins) has a name of
    its own.
    """
    axes: dict[str, dict[int, str]] = {}
    batch = next((tensor.shape[0] for tensor in inputs.values() if tensor.ndim and tensor.shape[0] != 1), 1)
    for name, tensor in inputs.items():
        first = "batch" if tensor.ndim and tensor.shape[0] in (1, batch) else f"{name}_0"
        axes[name] = {0: first} if tensor.ndim else {}
        if tensor.ndim == 2 and not tensor.is_floating_point():
            axes[name][1] = "decoder_sequence" if name.startswith("decoder_") else "sequence"
    return axes


def _output_names(model: nn.Module, given: Tensors, traced: Tensors, wanted: Sequence[str] | None) -> list[str]:
    try:
        with torch.no_grad():
            there = list(named_outputs(model(**traced)))
    except Exception as error:  # the model raises any exception
        raise _does_not_run(model, given, traced, error) from error
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


def _does_not_run(model: nn.Module, given: Tensors, traced: Tensors, error: Exception) -> BadExampleInputs:
    context, hint = "", "give example inputs that model(**example_inputs) accepts."
    if describe(given) != describe(traced):
        context = f"example: {describe(given)}\n"
        hint = (
            "free sizes get sizes of their own for the export: name those that are always equal alike in dynamic_axes, "
            "and leave out those that are fixed."
        )
    return BadExampleInputs(
        f"{type(model).__name__} does not run on the example inputs.",
        context=f"{context}inputs: {describe(traced)}\n{type(error).__name__}: {first_line(error)}",
        hint=hint,
    )


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
            tensor = with_size(tensor, axis, sizes[symbol])
        grown[name] = tensor
    return grown


def describe(inputs: Mapping[str, Tensor]) -> str:
    """Names, dtypes and shapes, for messages."""
    return ", ".join(f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in inputs.items())
