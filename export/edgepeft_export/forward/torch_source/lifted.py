"""Exports a module as a graph whose parameters are inputs, from a trace of all blocks or of a few."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgepeft_export.errors import ExportFailed
from edgepeft_export.forward.torch_source.blocks.record import lifted_tensors
from edgepeft_export.forward.torch_source.blocks.stack import Stack, traced_only
from edgepeft_export.forward.torch_source.blocks.stamp import BlocksDiffer, stamp
from edgepeft_export.forward.torch_source.blocks.trace import Traced
from edgepeft_export.forward.torch_source.export import DynamicAxes, Exported, export
from edgepeft_export.forward.torch_source.frozen import bind_frozen
from edgepeft_export.forward.torch_source.half import HALF, LARGE, keeps_half, traced
from edgepeft_export.forward.torch_source.naming import name_outputs, rename
from edgepeft_export.forward.torch_source.operators.bags import EmbeddingBags
from edgepeft_export.forward.torch_source.operators.detach import KeepDetach
from edgepeft_export.forward.torch_source.operators.pool import MeanOfWhole
from edgepeft_export.forward.torch_source.operators.promote import PromoteIntegers
from edgepeft_export.forward.torch_source.operators.recurrent import KeepRecurrent
from edgepeft_export.forward.torch_source.operators.split import SlicedParts
from edgepeft_export.forward.torch_source.shared_storage import View, with_views


class Lifted(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """The model as a function of its inputs, its trainable parameters, and perhaps its frozen tensors.

    Args:
        model: the model.
        outputs: names of the outputs to return.
        views: tensors that are views of trainable ones.
    """

    def __init__(self, model: nn.Module, outputs: Sequence[str], views: Mapping[str, View]) -> None:
        super().__init__()
        self.model = model
        self.outputs = tuple(outputs)
        self.views = dict(views)
        self.train(model.training)

    def forward(
        self, inputs: dict[str, Tensor], trainable: dict[str, Tensor], frozen: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        modes = EmbeddingBags(), KeepRecurrent(), MeanOfWhole(), PromoteIntegers(), SlicedParts()
        with KeepDetach(list(trainable.values())), contextlib.ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            tensors = {**with_views(trainable, self.views), **(frozen or {})}
            result = torch.func.functional_call(self.model, tensors, kwargs=inputs)
        named = named_outputs(result)
        return tuple(named[name] for name in self.outputs)


def named_outputs(result: object) -> dict[str, Tensor]:
    """The tensors that a module returns, by name."""
    if isinstance(result, Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        return {str(name): value for name, value in result.items() if isinstance(value, Tensor)}
    if isinstance(result, Sequence):
        return {f"output_{i}": value for i, value in enumerate(result) if isinstance(value, Tensor)}
    return {}


@dataclass(frozen=True)
class Module:
    """The exported part of a module.

    Attributes:
        model: the module.
        inputs: example inputs, by name.
        trainable: the trainable parameters, by name.
        views: tensors that are views of trainable ones.
        outputs: names of the outputs, as the module calls them.
        axes: the free axes of the inputs.
    """

    model: nn.Module
    inputs: dict[str, Tensor]
    trainable: dict[str, Tensor]
    views: Mapping[str, View]
    outputs: Sequence[str]
    axes: DynamicAxes

    @property
    def name(self) -> str:
        """The name of its class, for messages."""
        called = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        return type(called).__name__

    @property
    def called(self) -> list[str]:
        """The graph's names of the outputs: one that is also an input gets another."""
        taken = {*self.inputs, *self.trainable}
        return [f"{name}.output" if name in taken else name for name in self.outputs]


def graph_of(module: Module, stacks: Sequence[Stack]) -> Exported:
    """Export a module. Inputs, parameters, outputs and frozen tensors have their names in the module.

    Args:
        module: what is exported.
        stacks: of equal blocks. If they turn out to differ, all blocks are traced.
    """
    if stacks:
        try:
            return _from_few_blocks(module, stacks)
        except (BlocksDiffer, ExportFailed):
            pass
    frozen = _frozen(module, ())
    arguments = {"inputs": module.inputs, "trainable": module.trainable}
    if frozen:
        arguments["frozen"] = {name: traced(tensor) for name, tensor in frozen.items()}
    exported = export(
        Lifted(module.model, module.outputs, module.views), arguments, module.axes, type(module.model).__name__
    )
    rename(exported.graph, [name for tensors in arguments.values() for name in tensors], module.called)
    bind_frozen(exported.graph, frozen)
    return exported


def _frozen(module: Module, stacks: Sequence[Stack]) -> dict[str, Tensor]:
    """The frozen tensors that are inputs of a trace: those of blocks, large ones beside them, and half precision."""
    half = keeps_half(module.model)
    return {
        name: tensor.detach()
        for name, tensor in lifted_tensors(module.model).items()
        if name not in module.trainable
        and name not in module.views
        and (
            (half and tensor.dtype in HALF)
            or (stacks and tensor.numel() > LARGE)
            or any(stack.owner(name) is not None for stack in stacks)
        )
    }


def _from_few_blocks(module: Module, stacks: Sequence[Stack]) -> Exported:
    """Trace a few blocks, and write the others as copies. All tensors of blocks are inputs of the trace."""
    inputs, trainable = traced_only(module.inputs, stacks), traced_only(module.trainable, stacks)
    outputs = list(traced_only({name: name for name in module.outputs}, stacks))
    frozen = _frozen(module, stacks)
    read = {name: traced(tensor) for name, tensor in traced_only(frozen, stacks).items()}
    program = Lifted(module.model, outputs, module.views)
    # The exporter must not see tensors of other blocks: it would merge equal ones under a name of theirs.
    with Traced(module.model, stacks):
        exported = export(
            program,
            {"inputs": inputs, "trainable": trainable, "frozen": read},
            module.axes,
            type(module.model).__name__,
        )
    graph = exported.graph
    rename(graph, [*inputs, *trainable, *read], outputs)
    stamp(graph, stacks)
    bind_frozen(graph, frozen)
    _in_order(graph.graph, [*module.inputs, *module.trainable], module.outputs)
    name_outputs(graph.graph, module.called)
    return exported


def _in_order(graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Order inputs and outputs as a trace of all blocks does."""
    given = {value.name: value for value in graph.inputs}
    made = {value.name: value for value in graph.outputs}
    missing = [name for name in inputs if name not in given]
    if missing or len(given) != len(inputs) or len(made) != len(outputs):
        raise BlocksDiffer(f"no block has the tensors {missing}")
    graph.inputs[:] = [given[name] for name in inputs]
    graph.outputs[:] = [made[name] for name in outputs]
