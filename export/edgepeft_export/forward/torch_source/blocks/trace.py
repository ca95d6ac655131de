"""Traces a module of which only some blocks run, with an operator of our own at their boundaries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset
from torch import Tensor, nn

from edgepeft_export.forward.torch_source.blocks.stack import Stack
from edgepeft_export.graph.custom_ops import DOMAIN

BOUNDARY = "Boundary"
"""``(x) -> x`` at the start (an even ``number``) or the end (an odd one) of a traced block."""


def start_of(block: int) -> int:
    """The number of the start of the n-th block of all stacks; that of its end is one more."""
    return 2 * block


@torch.library.custom_op("edgepeft::boundary", mutates_args=())  # type: ignore[untyped-decorator]
def _boundary(x: Tensor, number: int) -> Tensor:  # noqa: ARG001  (the exporter reads it)
    return x.clone()


@_boundary.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, number: int) -> Tensor:  # noqa: ARG001  (as above)
    return torch.empty_like(x)


_SCHEMA = OpSchema(
    BOUNDARY,
    DOMAIN,
    1,
    inputs=[OpSchema.FormalParameter("x", "T")],
    outputs=[OpSchema.FormalParameter("y", "T")],
    type_constraints=[("T", ["tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"], "")],
    attributes=[OpSchema.Attribute("number", OpSchema.AttrType.INT, "", required=True)],
)


def _translated(x: ir.Value, number: int) -> object:
    return Op(Opset(DOMAIN, 1), BOUNDARY, _SCHEMA)(x, number=number)


TRANSLATION = {torch.ops.edgepeft.boundary.default: _translated}
"""For ``torch.onnx.export(custom_translation_table=…)``."""


class Traced:
    """A context in which a module runs the traced blocks only. The others return their input."""

    def __init__(self, model: nn.Module, stacks: Sequence[Stack]) -> None:
        self._model, self._stacks = model, stacks

    def __enter__(self) -> None:
        with contextlib.ExitStack() as all_of:
            number = 0
            for stack in self._stacks:
                for index, name in enumerate(stack.blocks):
                    run = _marked if stack.like[index] == index else _skipped
                    all_of.enter_context(run(self._model, name, stack, number))
                    number += 2
            self._undo = all_of.pop_all()

    def __exit__(self, *_: object) -> None:
        self._undo.close()


@contextlib.contextmanager
def _marked(model: nn.Module, name: str, stack: Stack, number: int) -> Iterator[None]:
    block = model.get_submodule(name)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(stack.argument, int):
            x = _boundary(args[stack.argument], number)
            return (*args[: stack.argument], x, *args[stack.argument + 1 :]), kwargs
        return args, {**kwargs, stack.argument: _boundary(kwargs[stack.argument], number)}

    def after(_: nn.Module, __: tuple[Any, ...], result: Any) -> Any:
        if stack.wrapped:
            return (_boundary(result[0], number + 1), *result[1:])
        return _boundary(result, number + 1)

    hooks = (
        block.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
        block.register_forward_hook(after),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _skipped(model: nn.Module, name: str, stack: Stack, _: int) -> Iterator[None]:
    parent, child = name.rpartition(".")[::2]
    modules = model.get_submodule(parent)._modules
    block = modules[child]
    modules[child] = _Skip(block, stack)
    try:
        yield
    finally:
        modules[child] = block


class _Skip(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """Returns what the block before it returned. Other attributes are those of the block that it stands for."""

    def __init__(self, block: nn.Module | None, stack: Stack) -> None:
        super().__init__()
        self._block: Callable[[], nn.Module | None] = lambda: block  # no submodule: its tensors are not read
        self._argument, self._wrapped = stack.argument, stack.wrapped

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(vars(self)["_block"](), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = args[self._argument] if isinstance(self._argument, int) else kwargs[self._argument]
        return (x,) if self._wrapped else x
