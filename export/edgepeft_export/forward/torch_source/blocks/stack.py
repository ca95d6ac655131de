"""A stack of blocks, and which of them are traced."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

CACHED = re.compile(r"(?:past|present)\.(?P<block>\d+)\.")
"""Start of the name of an input or output that belongs to one block: its keys or values."""


@dataclass(frozen=True)
class Stack:
    """Blocks that a module calls one after the other, each with the result of the one before.

    Attributes:
        blocks: names of the modules.
        like: for each block the index of the traced block that it equals; its own index where it is traced.
        equal: pairs of traced blocks that have to be equal in the graph.
        argument: index or name of the argument that is the result of the block before.
        wrapped: whether a block returns a tuple with one tensor.
        caches: whether inputs and outputs named as in ``CACHED`` belong to the blocks.
    """

    blocks: tuple[str, ...]
    like: tuple[int, ...]
    equal: tuple[tuple[int, int], ...]
    argument: int | str
    wrapped: bool
    caches: bool = False

    @property
    def traced(self) -> list[int]:
        """Indices of the traced blocks."""
        return [index for index, other in enumerate(self.like) if index == other]

    @property
    def copied(self) -> list[int]:
        """Indices of the blocks that are not traced."""
        return [index for index, other in enumerate(self.like) if index != other]

    def owner(self, name: str) -> tuple[int, str] | None:
        """The block that a parameter, input or output belongs to, and the rest of the name, by which they compare."""
        cached = CACHED.match(name) if self.caches else None
        if cached is not None:
            return int(cached["block"]), name[: cached.start("block")] + name[cached.end("block") :]
        for index, block in enumerate(self.blocks):
            if name.startswith(f"{block}."):
                return index, name[len(block) + 1 :]
        return None

    def renamed(self, name: str, index: int) -> str:
        """The name in the block ``index`` of what has this name in another block."""
        cached = CACHED.match(name) if self.caches else None
        if cached is not None:
            return f"{name[: cached.start('block')]}{index}{name[cached.end('block') :]}"
        owner = self.owner(name)
        assert owner is not None
        return f"{self.blocks[index]}.{owner[1]}"


def traced_only(named: Mapping[str, T], stacks: Sequence[Stack]) -> dict[str, T]:
    """The tensors that a trace reads: all but those of blocks that are not traced."""
    skipped = [(stack, set(stack.copied)) for stack in stacks]
    return {name: value for name, value in named.items() if not any(_in(stack, name, out) for stack, out in skipped)}


def _in(stack: Stack, name: str, indices: set[int]) -> bool:
    owner = stack.owner(name)
    return owner is not None and owner[0] in indices
