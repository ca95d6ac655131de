"""Exports a torch function as a loss, to an ONNX graph, like a model."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgepeft_export.errors import ForwardError, LossNotExported, WrongLossInputs, WrongLossOutput
from edgepeft_export.forward.graph import Forward
from edgepeft_export.forward.torch_source.export import Exported, export
from edgepeft_export.forward.torch_source.losses import PlainLosses
from edgepeft_export.forward.torch_source.module import default_dynamic_axes, describe, distinct_sizes
from edgepeft_export.forward.torch_source.reference import Reference, verified
from edgepeft_export.graph.shapes import Dim, dims_of, dtype_of
from edgepeft_export.losses import OnnxLoss
from edgepeft_export.losses.custom import inlined


def from_function(function: Callable[..., Tensor], forward: Forward, example_labels: Mapping[str, Tensor]) -> OnnxLoss:
    """Export ``function`` as a loss.

    Args:
        function: a function or module. Its arguments are named like the model's outputs it reads and like the labels it
            is fed (``argument_name``); it returns the mean loss of the batch, a scalar, or that of each example.
        example_labels: an example of each label, by name. Axis 0 is the batch.
    """
    names = _arguments(function)
    named = {argument_name(name): name for name in forward.outputs}
    outputs = {argument_name(name): value for name, value in _outputs(forward).items()}
    if len(named) < len(forward.outputs):
        raise WrongLossInputs(
            "Two outputs of the model have the same name as an argument of a loss.",
            context=f"the model returns: {', '.join(forward.outputs)}",
            hint="give the loss as an .onnx file, whose inputs may have any names.",
        )
    unknown = [name for name in names if name not in outputs and name not in example_labels]
    if unknown:
        raise WrongLossInputs(
            f"The loss reads {', '.join(map(repr, unknown))}, which is neither an output of the model nor a label.",
            context=f"the model returns: {', '.join(outputs)}\nexample labels: {', '.join(example_labels) or 'none'}",
            hint="name the arguments of the loss like the model's outputs, and give an example of every label.",
        )
    axes = {name: _symbols(outputs[name]) for name in names if name in outputs}
    labels = {name: example_labels[name] for name in names if name not in outputs}
    axes |= _label_axes(labels, next((dims_of(outputs[name]) for name in names if name in outputs), []))
    given = {argument_name(name): tensor for name, tensor in _example_outputs(forward).items()}
    examples = {name: labels[name] if name in labels else given[name] for name in names}
    examples = distinct_sizes(examples, axes)
    _check_result(function, examples)
    exported = _exported(function, examples, axes)
    model = exported.graph
    for value, name in zip(model.graph.inputs, names, strict=True):
        value.name = name
    model = inlined(model)
    reference = Reference(
        lambda inputs, _: {"loss": function(**inputs)}, examples, examples, {}, axes, exported.sizes, what="loss"
    )
    verified(Forward(model, tuple(names), {}), reference)
    for value, name in zip(model.graph.inputs, names, strict=True):
        value.name = named.get(name, name)
    return OnnxLoss(model)


def argument_name(output: str) -> str:
    """An output's name as that of an argument: ``387`` is ``_387``, and ``Identity:0`` is ``Identity_0``."""
    name = re.sub(r"\W", "_", output)
    return f"_{name}" if name[:1].isdigit() else name


def _exported(
    function: Callable[..., Tensor], examples: dict[str, Tensor], axes: Mapping[str, Mapping[int, str]]
) -> Exported:
    try:
        return export(_Loss(function), {"inputs": examples}, axes, "the loss")
    except ForwardError as error:
        raise LossNotExported(
            error.message, context=error.context, hint=_hint(f"{error.message} {error.context}")
        ) from error


def _hint(found: str) -> str:
    known = "choose the loss by its name, 'ctc', or " if "ctc_loss" in found else ""
    return f"{known}write the loss with operations that torch.export supports and free sizes, or give an .onnx file."


def _example_outputs(forward: Forward) -> dict[str, Tensor]:
    """The model's outputs for its example, so that labels which fit the example fit the outputs too."""
    examples = forward.verified.examples
    made = {name: torch.from_numpy(array) for name, array in examples[0].outputs.items()} if examples else {}
    return {name: made[name] if name in made else _example(value) for name, value in _outputs(forward).items()}


def _outputs(forward: Forward) -> dict[str, ir.Value]:
    return {str(value.name): value for value in forward.model.graph.outputs}


class _Loss(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        with PlainLosses():
            return self.function(**inputs)


def _arguments(function: Callable[..., object]) -> list[str]:
    call = function.forward if isinstance(function, nn.Module) else function
    return [
        p.name for p in inspect.signature(call).parameters.values() if p.default is p.empty and p.kind != p.VAR_KEYWORD
    ]


def _check_result(function: Callable[..., Tensor], examples: Mapping[str, Tensor]) -> None:
    try:
        with torch.no_grad():
            result = function(**examples)
    except Exception as error:  # a user's function may raise anything
        raise WrongLossInputs(
            "The loss does not run on the model's outputs and the example labels.",
            context=f"inputs: {describe(examples)}\n{type(error).__name__}: {error}",
            hint="give example labels of the dtypes and shapes that the loss expects.",
        ) from error
    rows = next(iter(examples.values())).shape[:1]
    if not isinstance(result, Tensor) or (result.numel() != 1 and result.shape != rows):
        returned = f"a tensor {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise WrongLossOutput(
            f"The loss returns {returned} instead of one scalar.",
            context=None,
            hint="return the mean over the batch, a float32 scalar, or the loss of each example, [batch].",
        )


def _symbols(value: ir.Value) -> dict[int, str]:
    return {axis: dim for axis, dim in enumerate(dims_of(value)) if isinstance(dim, str)}


def _label_axes(labels: Mapping[str, Tensor], dims: Sequence[Dim]) -> dict[str, dict[int, str]]:
    """The free axes of labels, named like those of the model's output. An axis that is fixed there is fixed."""
    return {
        name: {
            axis: str(dims[axis]) if axis < len(dims) and dims[axis] else symbol
            for axis, symbol in axes.items()
            if axis >= len(dims) or not isinstance(dims[axis], int)
        }
        for name, axes in default_dynamic_axes(labels).items()
    }


def _example(value: ir.Value) -> Tensor:
    sizes = [dim if isinstance(dim, int) else 2 for dim in dims_of(value)]
    return torch.rand(sizes).to(torch.from_numpy(dtype_of(value).numpy().type(0).reshape(1)).dtype)
