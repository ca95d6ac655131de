"""Leaves out work of torch's exporter that does not change the exported graph.

Half of the time of an export of two blocks passes in it: each export reads the translations of all operators again,
runs every node a second time to promote dtypes, and tries every rewrite rule at every node.

A release of torch or onnxscript in which a part has another name does that part's work in full.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import onnx_ir as ir
from torch import fx

_REGISTRY = ("torch.onnx._internal.exporter._registration", "ONNXRegistry", "from_torchlib")
_PROMOTION = ("torch.onnx._internal.fx.passes.type_promotion", "_TypePromotionInterpreter", "run_node")
_REWRITING = ("onnxscript.rewriter._rewrite_rule", "RewriteRule", "try_rewrite")


@contextlib.contextmanager
def shortcuts() -> Iterator[None]:
    """A context in which torch's exporter does no needless work."""
    parts = ((_REGISTRY, _read_once), (_PROMOTION, _changed_nodes_only), (_REWRITING, _where_the_last_node_fits))
    with contextlib.ExitStack() as patches:
        for (module, name, method), shorter in parts:
            owner = _found(module, name)
            original = getattr(owner, method, None)
            if original is not None:
                patches.enter_context(mock.patch.object(owner, method, shorter(original)))
        yield


def _found(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


_registries: dict[int, Any] = {}
"""The translations of all operators, by the operator set. They cost as much as the export of a block."""


def _read_once(original: Callable[..., Any]) -> object:
    """Translations that were read before, in a copy: an export adds its own to them."""

    def from_torchlib(cls: Callable[[], Any], opset_version: int) -> Any:
        if opset_version not in _registries:
            _registries[opset_version] = original(opset_version=opset_version)
        read, copied = _registries[opset_version], cls()
        copied._opset_version = opset_version
        copied.functions = {target: list(found) for target, found in read.functions.items()}
        return copied

    return classmethod(from_torchlib)


def _changed_nodes_only(original: Callable[..., Any]) -> Callable[..., Any]:
    """Run the nodes whose arguments were promoted, and take the others' results from their trace.

    A promotion casts the result back to the dtype that it had, so the nodes after it have the same results.
    """

    @functools.wraps(original)
    def run_node(self: Any, node: fx.Node) -> Any:
        if node.op != "call_function" or "val" not in node.meta:
            return original(self, node)
        before = node.target, node.args, dict(node.kwargs)
        promotion = _promotion(self, node)
        with self._set_current_node(node):
            if promotion is not None:
                self._maybe_promote_node(node, promotion)
        same = (node.target, node.args, dict(node.kwargs)) == before
        return node.meta["val"] if same else fx.Interpreter.run_node(self, node)

    return run_node


def _promotion(interpreter: Any, node: fx.Node) -> Any:
    from torch.onnx._internal.fx.passes.type_promotion import get_type_promotion_rule

    return get_type_promotion_rule(node, interpreter.type_promotion_table)


def _where_the_last_node_fits(original: Callable[..., Any]) -> Callable[..., Any]:
    """Match a pattern only at nodes of the operator that it ends with."""

    @functools.wraps(original)
    def try_rewrite(self: Any, model: ir.Model, graph: Any, node: ir.Node, **others: Any) -> Any:
        pattern = self._target_pattern
        if pattern.has_single_output_node:
            last = pattern.output_node
            if not (last.op.matches(node.op_type) and last.domain.matches(node.domain)):
                return None
        return original(self, model, graph, node, **others)

    return try_rewrite
