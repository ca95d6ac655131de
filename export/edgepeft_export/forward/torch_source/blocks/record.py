"""Finds equal blocks by what they do: the operators that each runs, in order, and all that these read.

Two blocks count as equal where their operators, their constants and their tensors agree one by one (parameters by
their names within the block, tensors from outside by identity) and where the attributes of their modules agree, but
for the block's own number.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_flatten

from edgepeft_export.forward.function_mode import OperatorMode
from edgepeft_export.forward.torch_source.blocks.stack import CACHED, Stack

_FEWEST = 4
"""Equal blocks from which on it pays to trace two of them."""

_TORCH = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)

Token = tuple[object, ...]


@dataclass
class _Run:
    """The calls of one block in a run of the module."""

    argument: int | str | None
    chained: bool
    own: dict[int, Token]
    trace: list[Token] = field(default_factory=list)
    results: dict[int, Token] = field(default_factory=dict)
    alive: list[object] = field(default_factory=list)
    wrapped: bool | None = None


class Recorder(OperatorMode):
    """Records one run of a module.

    Args:
        model: the module.
        inputs: the arguments of the run. Some belong to blocks by their names (``CACHED``).
        apart: names of tensors that no block of a stack may contain.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor], apart: Collection[str] = ()) -> None:
        super().__init__()
        self._lists = {name: children for name, children in _lists(model) if not _any_in(apart, name)}
        self._model = model
        self._caches = any(CACHED.match(name) for name in inputs)
        self._names = {id(tensor): name for name, tensor in lifted_tensors(model).items()}
        self._cached: dict[int, tuple[int, Token]] = {
            id(tensor): (int(match["block"]), (name[: match.start("block")], name[match.end("block") :]))
            for name, tensor in inputs.items()
            if (match := CACHED.match(name)) is not None
        }
        self._runs: dict[str, list[_Run]] = {name: [] for name in self._lists}
        self._last: dict[str, Tensor | None] = dict.fromkeys(self._lists)
        self._between: dict[int, str] = {}
        self._read_elsewhere: set[str] = set()
        self._current: tuple[str, int, _Run] | None = None
        self._alive: list[object] = []

    def __enter__(self) -> Recorder:
        self._hooks = [hook for name, children in self._lists.items() for hook in self._watch(name, children)]
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def call(self, operator: OpOverload, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        result: object = operator(*args, **kwargs)
        leaves, spec = tree_flatten((args, dict(kwargs)))
        results = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
        self._note_other_readers(leaves)
        if self._current is not None:
            self._inside(str(operator), leaves, str(spec), results)
        elif self._cached:
            self._outside(str(operator), leaves, results)
        return result

    def stacks(self, *, compared: bool = False) -> list[Stack]:
        """The stacks with equal blocks, after the run.

        Args:
            compared: whether graphs of the blocks were compared before. One of equal blocks is traced then, not two.
        """
        found = [self._stack(name, runs, compared=compared) for name, runs in self._runs.items()]
        stacks = [stack for stack in found if stack is not None]
        if self._caches and len(stacks) != 1:
            return []
        return stacks

    def _watch(self, name: str, children: list[str]) -> Iterator[Any]:
        for index, child in enumerate(children):
            block = self._model.get_submodule(child)
            yield block.register_forward_pre_hook(self._entered(name, index, child), with_kwargs=True)
            yield block.register_forward_hook(self._left(name))

    def _entered(self, name: str, index: int, child: str) -> Callable[..., None]:
        def entered(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._current is not None:  # a block within a block
                self._runs[name].append(_Run(None, False, {}))
                return
            last = self._last[name]
            given: dict[int | str, Any] = dict(enumerate(args))
            given.update({str(name): value for name, value in kwargs.items()})
            tensors = [key for key, value in given.items() if isinstance(value, Tensor)]
            chained = [key for key in tensors if given[key] is last]
            argument = next(iter(chained or tensors), None)
            own = _own_tensors(block, child, self._names)
            if argument is not None:
                own[id(given[argument])] = ("x", given[argument].dtype, given[argument].ndim)
            run = _Run(argument, bool(chained), own)
            self._runs[name].append(run)
            self._current = (name, index, run)

        return entered

    def _left(self, name: str) -> Callable[..., None]:
        def left(_: nn.Module, __: object, result: object) -> None:
            if self._current is None or self._current[0] != name:
                return
            run = self._current[2]
            self._current = None
            first = result[0] if isinstance(result, tuple) and result else result
            if isinstance(first, Tensor):
                run.wrapped = isinstance(result, tuple)
                run.trace.append(("returns", run.results.get(id(first))))
                if isinstance(result, tuple) and any(isinstance(other, Tensor) for other in result[1:]):
                    run.wrapped = None
                if self._last[name] is not None:
                    self._between[id(self._last[name])] = name
                self._last[name] = first
                self._alive.append(first)
            run.results.clear()
            run.alive.clear()

        return left

    def _inside(self, function: str, leaves: list[object], spec: str, results: list[Tensor]) -> None:
        assert self._current is not None
        _, index, run = self._current
        read = tuple(self._token(run, index, leaf, function) for leaf in leaves)
        number = len(run.trace)
        run.trace.append((function, spec, read, tuple((result.dtype, result.shape) for result in results)))
        for output, result in enumerate(results):
            run.results.setdefault(id(result), ("result", number, output))
        run.alive.extend(results)

    def _note_other_readers(self, leaves: list[object]) -> None:
        """Note stacks of which another module reads a result that is not the last one: a copy could not say which."""
        for leaf in leaves:
            name = self._between.get(id(leaf)) if isinstance(leaf, Tensor) else None
            if name is not None:
                self._read_elsewhere.add(name)

    def _token(self, run: _Run, index: int, leaf: object, function: str) -> Token:
        if not isinstance(leaf, Tensor):
            return _plain(leaf)
        known = run.own.get(id(leaf)) or run.results.get(id(leaf))
        if known is not None:
            return known
        cached = self._cached.get(id(leaf))
        if cached is not None and cached[0] == index:
            return ("cached", *cached[1])
        if "lift_fresh" in function:  # a constant in the code of the block
            return _content(leaf)
        self._alive.append(leaf)  # so that no other tensor gets its identity
        return ("outside", id(leaf))

    def _outside(self, function: str, leaves: list[object], results: list[Tensor]) -> None:
        """Note what is computed of a block's own inputs before the block runs."""
        read = [self._cached.get(id(leaf)) for leaf in leaves if isinstance(leaf, Tensor)]
        owners = {cached[0] for cached in read if cached is not None}
        if len(owners) != 1:
            return
        what = [_plain(leaf) for leaf in leaves if not isinstance(leaf, Tensor)]
        token = (function, tuple(what), tuple(cached and cached[1] for cached in read))
        for output, result in enumerate(results):
            self._cached.setdefault(id(result), (next(iter(owners)), (*token, output)))
            self._alive.append(result)

    def _stack(self, name: str, runs: list[_Run], *, compared: bool) -> Stack | None:
        children = self._lists[name]
        if name in self._read_elsewhere or len(runs) != len(children) or not all(run.chained for run in runs[1:]):
            return None
        argument, wrapped = runs[1].argument, runs[0].wrapped
        if argument is None or wrapped is None or any((r.argument, r.wrapped) != (argument, wrapped) for r in runs):
            return None
        blocks = [self._model.get_submodule(child) for child in children]
        groups: list[list[int]] = []
        for index, run in enumerate(runs):
            same = (g for g in groups if run.trace == runs[g[0]].trace and _agree(blocks, index, g[0]))
            group = next(same, None)
            if group is None:
                groups.append([index])
            else:
                group.append(index)
        groups = [group for group in map(self._comparable, groups) if len(group) >= _FEWEST]
        like = list(range(len(children)))
        traced = 1 if compared else 2
        for group in groups:
            for index in group[traced:]:
                like[index] = group[traced - 1]
        equal = () if compared else tuple((group[0], group[1]) for group in groups)
        return Stack(tuple(children), tuple(like), equal, argument, wrapped, self._caches) if groups else None

    def _comparable(self, group: list[int]) -> list[int]:
        """Those of equal blocks whose graphs are equal too.

        With a cache, the sizes that all blocks read are those of the first block's keys: to it, they are its own.
        """
        return [index for index in group if index or not self._caches]


def lifted_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module that can be inputs of a graph: parameters, and float buffers of its state."""
    state = model.state_dict(keep_vars=True)
    parameters = dict(model.named_parameters())
    buffers = {name: value for name, value in model.named_buffers() if name in state and value.is_floating_point()}
    return {**buffers, **parameters}


def _lists(model: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """Lists of modules of one class, not those within such a list, each with the names of its modules."""
    within: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or any(name.startswith(f"{w}.") for w in within):
            continue
        children = list(module.named_children())
        kinds = {_kind(child) for _, child in children}
        if len(children) >= _FEWEST and len(kinds) == 1 and any(True for _ in children[0][1].children()):
            within.append(name)
            yield name, [f"{name}.{child}" if name else child for child, _ in children]


def _any_in(names: Collection[str], prefix: str) -> bool:
    return any(name.startswith(f"{prefix}." if prefix else "") for name in names)


def _own_tensors(block: nn.Module, child: str, names: Mapping[int, str]) -> dict[int, Token]:
    """Tokens of a block's tensors. One that another module owns too has none."""
    own: dict[int, Token] = {}
    for name, tensor in (*block.named_buffers(), *block.named_parameters()):
        owner = names.get(id(tensor))
        if owner is None:
            own[id(tensor)] = _content(tensor)
        elif owner == f"{child}.{name}":
            own[id(tensor)] = ("own", name, tensor.dtype, tensor.shape, tensor.requires_grad)
    return own


def _content(tensor: Tensor) -> Token:
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return ("constant", tensor.dtype, tensor.shape, hashlib.sha256(data).hexdigest())


def _plain(value: object) -> Token:
    if isinstance(value, _PLAIN):
        return (type(value).__name__, repr(value))
    return (type(value).__name__, repr(value) if isinstance(value, (torch.layout, torch.memory_format)) else None)


def _agree(blocks: list[nn.Module], first: int, second: int) -> bool:
    """Whether the modules of two blocks have the same attributes, but for the blocks' own numbers."""
    left, right = (list(blocks[index].named_modules()) for index in (first, second))
    return len(left) == len(right) and all(
        name == other and _kind(a) == _kind(b) and _same(_attributes(a), _attributes(b), second - first)
        for (name, a), (other, b) in zip(left, right, strict=True)
    )


def _kind(module: nn.Module) -> tuple[object, ...]:
    """The class of a module by its name and its bases, because peft derives a class of its own for each layer."""
    return type(module).__module__, type(module).__qualname__, type(module).__bases__


def _attributes(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if name not in _TORCH} | {"training": module.training}


def _same(a: object, b: object, apart: int) -> bool:
    if type(a) is not type(b):
        return False
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(_same(a[key], b[key], apart) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y, apart) for x, y in zip(a, b, strict=True))
    if isinstance(a, int) and isinstance(b, int) and not isinstance(a, bool):
        return a == b or b - a == apart
    if isinstance(a, str) and isinstance(b, str):  # a name of the block, with its number
        return a == b or _same(_with_numbers(a), _with_numbers(b), apart)
    return a == b if isinstance(a, _PLAIN) else True


def _with_numbers(text: str) -> list[object]:
    return [int(part) if part.isdecimal() else part.encode() for part in re.split(r"(\d+)", text)]
