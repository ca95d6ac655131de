"""Copy a user's module, so that the original does not change."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import CellType, FunctionType

from torch import Tensor, nn

from edgepeft.sources.errors import ModelNotCopied


def working_copy(model: nn.Module, *, share: bool = True) -> nn.Module:
    """Copy a module with all its contents.

    Args:
        model: The module. It does not change.
        share: Whether the copies of parameters share the originals' storage, so that memory does not double. Flags and
            modules are the copy's own; only code that writes into the values of parameters needs ``share=False``.

    Raises:
        EdgepeftError: An object in the module cannot be copied.
    """
    # The originals are referenced until the end: a module may replace its parameters when they are listed, as peft's
    # LoRA of nn.MultiheadAttention does, and another object could get the same id.
    shared, results = list(_shared(model)) if share else [], list(_results(model))
    memo: dict[int, object] = {id(old): new for old, new in shared}
    memo |= {id(value): value.detach() if share else value.detach().clone() for value in results}
    try:
        copied: nn.Module = copy.deepcopy(model, memo)
    except Exception as error:  # the objects in a module raise any exception
        raise ModelNotCopied(
            f"{type(model).__name__} cannot be copied, and prepare works on a copy.",
            context=f"{type(error).__name__}: {(str(error).strip().splitlines() or ['(no message)'])[0]}",
            hint="leave files, locks and generators out of the module, or give it a __deepcopy__.",
        ) from error
    for module in copied.modules():
        _rebind(module, memo)
    return copied


def with_exportable_experts(model: nn.Module) -> nn.Module:
    """Let mixtures of experts of transformers multiply all experts as one batch, in place.

    Their default, a grouped matmul with sizes that depend on the data, has no ONNX graph. The results are the same.
    """
    for module in model.modules():
        may_choose = getattr(module, "_can_set_experts_implementation", None)
        if may_choose is not None and may_choose():
            module.set_experts_implementation("batched_mm")
    return model


def _shared(model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield parameters, and buffers that are views of parameters, each with a copy that shares its storage."""
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter:
            yield parameter, nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters() if parameter.numel()}
    for buffer in model.buffers():
        if buffer.numel() and buffer.untyped_storage().data_ptr() in storages:
            yield buffer, buffer.detach()


def _results(model: nn.Module) -> Iterator[Tensor]:
    """Yield tensors that torch does not copy: results of an earlier forward in the module, views of parameters."""
    for module in model.modules():
        yield from (value for value in _tensors(vars(module)) if not value.is_leaf)


def _tensors(content: object) -> Iterator[Tensor]:
    """Yield the tensors in dictionaries, lists and tuples."""
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, (dict, list, tuple)) and type(content) in (dict, list, tuple):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _tensors(value)


def _rebind(module: nn.Module, memo: dict[int, object]) -> None:
    """Let functions that enclose a module of the original (a hook, a replaced ``forward``) enclose its copy."""
    for name, value in list(vars(module).items()):
        if isinstance(value, FunctionType):
            vars(module)[name] = _rebound(value, memo)
        elif name.endswith("_hooks") and isinstance(value, dict):
            for key, hook in value.items():
                value[key] = _rebound(hook, memo) if isinstance(hook, FunctionType) else hook


def _rebound(function: FunctionType, memo: dict[int, object]) -> FunctionType:
    cells = function.__closure__ or ()
    if not any(isinstance(_content(cell), nn.Module) and id(_content(cell)) in memo for cell in cells):
        return function
    enclosed = tuple(CellType(memo.get(id(_content(cell)), _content(cell))) for cell in cells)
    bound = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, enclosed)
    bound.__kwdefaults__ = function.__kwdefaults__
    vars(bound).update(vars(function))
    return bound


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was assigned to the variable yet
        return None
