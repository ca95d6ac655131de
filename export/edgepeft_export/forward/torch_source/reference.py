"""Compares an exported graph with the torch module it was exported from, at two sizes, and names what differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from edgepeft_export.errors import ExportDiffers
from edgepeft_export.forward.graph import Forward, SizeRange
from edgepeft_export.forward.torch_source.export import one_length
from edgepeft_export.forward.torch_source.sizes import TracedSize, with_size
from edgepeft_export.forward.torch_source.trace import first_difference
from edgepeft_export.verification import FLOAT32, HALF, Example, GraphRun, Verified, difference, refuse_random
from edgepeft_export.verification.compare import Array
from edgepeft_export.verification.randomness import draws_random

Tensors = Mapping[str, Tensor]
Function = Callable[[Tensors, Tensors], Mapping[str, Tensor]]
Axes = Mapping[str, Mapping[int, str]]

_NEAR = 4
"""A limit is tried if it is at most so many times the traced size. One that is farther is believed."""

_GAPS = 3
"""Sizes that are tried between the limits."""

_MANY = 4096
"""With more elements than this in the free axes, the second size is half the first instead of twice."""

_ROUNDING = 1e-6
"""Relative change of inputs and parameters that must not change the outputs more than the export did."""

_HALF_ROUNDING = 2.0**-8
"""The same for a function that computes in half precision: the rounding of bfloat16."""


@dataclass(frozen=True)
class Reference:
    """A torch function that a graph was exported from.

    Attributes:
        function: ``(inputs, trainable) -> outputs``, each by name.
        inputs: the user's example.
        traced: the example of the export, whose free sizes all differ.
        trainable: initial values of the trainable parameters.
        axes: the free axes.
        sizes: what the trace knows about each of them.
        half: whether the function computes in half precision.
        what: ``graph`` or ``loss``, for messages.
    """

    function: Function
    inputs: Tensors
    traced: Tensors
    trainable: Tensors
    axes: Axes
    sizes: Mapping[str, TracedSize] = field(default_factory=dict)
    half: bool = False
    what: str = "graph"

    def run(self, inputs: Tensors, trainable: Tensors) -> dict[str, Tensor]:
        """The outputs by name, detached."""
        with torch.no_grad():
            return {name: value.detach() for name, value in self.function(inputs, trainable).items()}


def verified(forward: Forward, reference: Reference) -> Forward:
    """The same graph, with the examples on which it was compared.

    Compared are the example itself; inputs of another size; and these again with every trainable tensor that is
    constant, such as LoRA's B, set to other values: a branch that is zero shows nothing.

    Raises:
        VerificationError: the graph's outputs differ, or it draws random numbers.
    """
    refuse_random(forward.model)
    graph = GraphRun(forward.model)
    tolerance = HALF if reference.half else FLOAT32
    examples, notes = [], []
    for inputs, expected in _runs(reference):
        wrong = _wrong(graph, inputs, reference.trainable, expected, tolerance)
        if wrong is None:
            examples.append(
                Example(arrays(inputs), dict(zip(forward.outputs, map(array, expected.values()), strict=True)))
            )
        elif _has_size_one(inputs, reference.axes) and not np.isfinite(wrong[1]):
            notes.append(_only_larger(wrong[0]))
        else:
            _refuse(forward, reference, inputs, reference.trainable, wrong, tolerance)
    others = changed(reference.trainable)
    if examples and any(others[name] is not tensor for name, tensor in reference.trainable.items()):
        wrong = _wrong(graph, inputs, others, reference.run(inputs, others), tolerance)
        if wrong is not None:
            _refuse(forward, reference, inputs, others, wrong, tolerance)
    limits = _confirmed(graph, reference, tolerance)
    return replace(forward, verified=Verified(tuple(examples), tolerance, tuple(notes)), limits=limits)


def _confirmed(graph: GraphRun, reference: Reference, tolerance: float) -> dict[str, SizeRange]:
    """The limits of free sizes past which the graph is not right.

    Torch also records conditions that do not change what is computed, so the graph is compared past each limit that is
    near.

    Raises:
        VerificationError: sizes between the limits are wrong.
    """
    limits = {}
    for name, traced in reference.sizes.items():

        def fits(size: int, name: str = name) -> bool | None:
            return _fits(graph, reference, name, size, tolerance)

        least, most = traced.limits.least, traced.limits.most
        if least > 1 and fits(least - 1):
            least = 1
        if most is not None and most < _NEAR * traced.size and fits(most + 1):
            most = None
        gaps = sorted(traced.gaps, key=lambda gap: abs(gap - traced.size))
        for gap in gaps[:_GAPS]:
            if gap <= _NEAR * traced.size and fits(gap) is False:
                raise _branches_on(name, traced.size, gap)
        other = traced.related
        if other is not None and other <= _NEAR * traced.size and fits(other) is False:
            raise _branches_on(name, traced.size, other)
        if (least, most) != (1, None):
            limits[name] = SizeRange(least, most)
    return limits


def _fits(graph: GraphRun, reference: Reference, name: str, size: int, tolerance: float) -> bool | None:
    """Whether the graph is right where one free size is another one; ``None`` if torch does not run there."""
    others = _spread(_sized(reference.traced, reference.axes, name, size))
    try:
        expected = reference.run(others, reference.trainable)
    except Exception:  # the model raises any exception
        return None
    return _wrong(graph, others, reference.trainable, expected, tolerance) is None


def _sized(inputs: Tensors, axes: Axes, name: str, size: int) -> dict[str, Tensor]:
    """Inputs in which one free size is another one, by repetition or cutting."""
    result = dict(inputs)
    for given, tensor in inputs.items():
        for axis, symbol in axes.get(given, {}).items():
            if symbol == name:
                result[given] = with_size(tensor, axis, size)
    return result


def _branches_on(name: str, size: int, gap: int) -> ExportDiffers:
    return ExportDiffers(
        f"The model computes something else where {name} is {gap} than where it is {size}, as in the example.",
        context=f"The graph has one way only, and would be wrong without an error where {name} is {gap}.",
        hint=f"{one_length(name)} Or compute the same for all sizes.",
    )


def _wrong(
    graph: GraphRun, inputs: Tensors, trainable: Tensors, expected: Tensors, tolerance: float
) -> tuple[str, float] | None:
    """Name and relative difference of the first output of the graph that differs."""
    try:
        got = graph(arrays({**inputs, **trainable}))
    except Exception:  # onnxruntime's exceptions have no class in common but this one
        return next(iter(expected)), np.inf
    for (name, ours), reference in zip(got.items(), expected.values(), strict=True):
        off = difference(ours, array(reference))
        if off > tolerance:
            off = difference(*_attended(inputs, ours, array(reference)))
        if off > tolerance:
            return name, off
    return None


def _attended(inputs: Tensors, ours: Array, reference: Array) -> tuple[Array, Array]:
    """Both with zeros where the inputs' mask marks padding, because outputs at padding are undefined."""
    for name, tensor in inputs.items():
        if "mask" in name and not tensor.is_floating_point() and ours.shape == reference.shape:
            masked = tensor.numpy() == 0
            if masked.shape == reference.shape[: masked.ndim]:
                ours, reference = np.array(ours), np.array(reference)
                ours[masked], reference[masked] = 0, 0
    return ours, reference


def _refuse(
    forward: Forward,
    reference: Reference,
    inputs: Tensors,
    trainable: Tensors,
    wrong: tuple[str, float],
    tolerance: float,
) -> None:
    """Raise, unless the function itself changes as much where its inputs are rounded."""
    name, off = wrong
    again, once = (array(_values(reference.run(inputs, trainable))[_index(forward, name)]) for _ in range(2))
    if difference(again, once) > tolerance:
        raise draws_random([f"output {name}"])
    size = _HALF_ROUNDING if reference.half else _ROUNDING
    rounded = reference.run(_rounded(inputs, size), _rounded(trainable, size))
    if off <= difference(array(_values(rounded)[_index(forward, name)]), once):
        return
    suspect = first_difference(forward.model, lambda: reference.run(inputs, trainable), arrays({**inputs, **trainable}))
    raise ExportDiffers(
        f"The exported {reference.what} computes another {name!r} than torch: "
        + (
            f"they differ by {off:.2g} of the largest value (allowed: {tolerance:g})."
            if np.isfinite(off)
            else "it fails, or returns another shape."
        ),
        context=f"{suspect}\nsizes: {_described(inputs)}",
        hint="torch.onnx exports this wrong: write it by other operations, or prepare an .onnx file of the model.",
    )


def _runs(reference: Reference) -> Iterator[tuple[Tensors, Tensors]]:
    """Yield the example, and inputs of another size where the function accepts them, each with the outputs."""
    yield reference.inputs, reference.run(reference.inputs, reference.trainable)
    if not any(reference.axes.get(name) for name in reference.inputs):
        other = _spread(reference.inputs)
        yield other, reference.run(other, reference.trainable)
        return
    for factor in _factors(reference):
        other = _spread(resized(reference.traced, reference.axes, factor))
        if not _within_limits(other, reference):
            continue
        try:
            result = reference.run(other, reference.trainable)
        except Exception:
            continue
        if any(bool(torch.isfinite(value).any()) for value in result.values()):
            yield other, result
            return


def _within_limits(inputs: Tensors, reference: Reference) -> bool:
    sizes = {symbol: inputs[name].shape[axis] for name, axes in reference.axes.items() for axis, symbol in axes.items()}
    return all(
        name not in sizes
        or (
            traced.limits.least <= sizes[name] <= (traced.limits.most or sizes[name]) and sizes[name] not in traced.gaps
        )
        for name, traced in reference.sizes.items()
    )


def _factors(reference: Reference) -> Sequence[float]:
    sizes = {reference.traced[name].shape[axis] for name, axes in reference.axes.items() for axis in axes}
    return (0.5, 2, 1) if np.prod(list(sizes)) > _MANY else (2, 0.5, 1)


def resized(inputs: Tensors, axes: Axes, factor: float) -> dict[str, Tensor]:
    """Inputs with every free axis longer by this factor, by repetition, or shorter.

    The factor is the same for all, so that a size that is the sum of others stays their sum.
    """
    result = {}
    for name, tensor in inputs.items():
        for axis in axes.get(name, {}):
            size = max(1, int(tensor.shape[axis] * factor))
            tensor = with_size(tensor, axis, size)
        result[name] = tensor
    return result


def _spread(inputs: Tensors) -> dict[str, Tensor]:
    """Inputs in which constant float tensors become random, of the same sign and size."""
    generator = torch.Generator().manual_seed(0)
    return {name: _vary(tensor, generator) for name, tensor in inputs.items()}


def changed(trainable: Tensors) -> dict[str, Tensor]:
    """Trainable tensors, of which those that are constant, such as LoRA's B, have random values."""
    generator = torch.Generator().manual_seed(1)
    return {name: _vary(tensor, generator, 0.02) for name, tensor in trainable.items()}


def _vary(tensor: Tensor, generator: torch.Generator, zero: float = 1.0) -> Tensor:
    """The tensor, or random numbers where it is constant: around 0 for 0, else between half of it and it."""
    if not tensor.is_floating_point() or not tensor.numel() or bool((tensor != tensor.reshape(-1)[0]).any()):
        return tensor
    first = float(tensor.reshape(-1)[0])
    if not np.isfinite(first) or abs(first) > 1e4:
        return tensor  # the lowest number, of a mask
    draw = torch.rand(tensor.shape, generator=generator)
    return (zero * (2 * draw - 1) if first == 0.0 else first * (0.5 + 0.5 * draw)).to(tensor.dtype)


def _rounded(tensors: Tensors, size: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)

    def moved(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor * (1 + size * torch.rand(tensor.shape, generator=generator)).to(tensor.dtype)

    return {name: moved(tensor) for name, tensor in tensors.items()}


def _has_size_one(inputs: Tensors, axes: Axes) -> bool:
    return any(inputs[name].shape[axis] == 1 for name, free in axes.items() for axis in free)


def _only_larger(name: str) -> str:
    return f"with a free size of 1 the shape of {name!r} differs: batches on the device must be larger than 1"


def _values(outputs: Mapping[str, Tensor]) -> list[Tensor]:
    return list(outputs.values())


def _index(forward: Forward, name: str) -> int:
    return forward.outputs.index(name)


def arrays(tensors: Tensors) -> dict[str, Array]:
    """Tensors as numpy arrays."""
    return {name: array(tensor) for name, tensor in tensors.items()}


def array(tensor: Tensor) -> Array:
    """A tensor as numpy array, in float32 where it is of half precision, as in graphs."""
    tensor = tensor.detach()
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return np.asarray((tensor.float() if half else tensor).contiguous().numpy())


def _described(inputs: Tensors) -> str:
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
