"""Names what a node belongs to: the module it was exported from, and the pass of the step.

A node's name begins with its module: ``model.layers.3.mlp/linear_4/grad/Gemm``. A graph that several calls share was
written for one of them; in the others, the module follows from the weights that the call binds.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import takewhile

from edgepeft_runtime.bundle.graphfile import NodeFacts

FORWARD, AGAIN, BACKWARD, UPDATE = PASSES = ("forward", "recomputed", "backward", "update")
LOSS, OPTIMIZER, GRADIENTS, OTHER = "loss", "optimizer", "gradients", "other"
"""Groups that are no modules: loss, optimizer, sums of gradients, and nodes without a module."""

_ANONYMOUS = "node_"
"""Start of the names of torch's exporter, which remain where a node belongs to no module."""
_GRADIENTS = frozenset({"gradient", "parameters"})
_GRADIENT = re.compile(r"/grad(/|$)")
_LAYOUT = re.compile(r"_nchwc$")
_FUSED = 3
"""Largest number of nodes that are fused into a convolution."""
_BLOCK = re.compile(r"(?:.*?\.)?\d+(?=\.|$)")


def module_of(node: str) -> str:
    """Return the module of a node, by its name."""
    if node.startswith("/"):  # torch's older exporter: /encoder/layer.0/attention/MatMul
        parts = node.strip("/").split("/")
        return ".".join(takewhile(lambda part: not part[:1].isupper() and part != "grad", parts)) or OTHER
    module, slash, _ = node.partition("/")
    if module in _GRADIENTS:
        return GRADIENTS
    return module if slash and not module.startswith(_ANONYMOUS) else OTHER


def pass_of(node: str, seen: Collection[str]) -> str:
    """Return the pass of a node; ``seen`` are the nodes, by module and name, that have run in this step."""
    if module_of(node) == GRADIENTS or _GRADIENT.search(node):
        return BACKWARD
    return AGAIN if node in seen else FORWARD


def renamed_layouts(nodes: Sequence[NodeFacts]) -> Callable[[str], str]:
    """Return the function from a node that onnxruntime runs to the node of the file that it stands for.

    Convolutions in onnxruntime's blocked layout are named after their results. What is fused into one (an activation, a
    sum) names it after its own result, so the convolution is searched for before it.
    """
    producers = {output: node for node in nodes for output in node.outputs}

    def renamed(name: str) -> str:
        value = _LAYOUT.sub("", name)
        if value == name or value not in producers:
            return name
        waiting = deque([(producers[value], 0)])
        while waiting:
            node, depth = waiting.popleft()
            if "Conv" in node.operator or "Pool" in node.operator:
                return node.name
            if depth < _FUSED:
                waiting.extend((producers[read], depth + 1) for read in node.inputs if read in producers)
        return producers[value].name

    return renamed


def block_of(module: str) -> str:
    """Return the part of a module's name up to its first number: ``layers.3`` of ``layers.3.mlp``."""
    block = _BLOCK.match(module)
    return module if block is None else block[0]


def common_prefix(modules: Collection[str]) -> str:
    """Return the parents that all modules have in common, with the dot after them."""
    paths = [module.split(".")[:-1] for module in modules if module not in (LOSS, OPTIMIZER, GRADIENTS, OTHER)]
    if not paths:
        return ""
    first, last = min(paths), max(paths)
    same = takewhile(lambda pair: pair[0] == pair[1] and not pair[0].isdecimal(), zip(first, last, strict=False))
    return "".join(f"{part}." for part, _ in same)


def renaming(weights: Sequence[Sequence[str]], nodes: Collection[str]) -> list[Callable[[str], str]]:
    """Return, for each call of a graph, the function from a node's name to its name in that call.

    Args:
        weights: for each call, the tensors that it binds, in the order of the graph's inputs.
        nodes: the names of the graph's nodes.
    """
    modules = {module_of(node) for node in nodes}
    reference = max(weights, key=lambda names: sum(_belongs(name, modules) for name in names), default=())
    return [_renamer(_blocks(reference, names)) for names in weights]


def _belongs(tensor: str, modules: Collection[str]) -> int:
    """Return the length of the longest module that a tensor is in, in parts; 0 if it is in none of them."""
    parts = tensor.split(".")
    return next((end for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in modules), 0)


def _blocks(reference: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return the modules of two calls that correspond: the names of tensors up to the last part that differs."""
    found = {}
    for one, other in zip(reference, names, strict=False):
        a, b = one.split("."), other.split(".")
        ends = [index + 1 for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
        if len(a) == len(b) and ends:
            found[".".join(a[: ends[-1]])] = ".".join(b[: ends[-1]])
    return found


def _renamer(blocks: Mapping[str, str]) -> Callable[[str], str]:
    def renamed(node: str) -> str:
        module, slash, rest = node.partition("/")
        parts = module.split(".")
        for end in range(len(parts), 0, -1):
            other = blocks.get(".".join(parts[:end]))
            if other is not None:
                return ".".join((other, *parts[end:])) + slash + rest
        return node

    return renamed
