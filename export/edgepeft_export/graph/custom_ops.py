"""Operators of our own, which live only while a graph is compiled.

A matmul with a quantized weight takes several kernels of ONNX Runtime. No gradient could cross them, because the
rounded activation in the middle is an integer. So the matmul stays one node until its gradient is there, and
``lower`` then writes the kernels, for the forward and the backward matmuls alike.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.edit import replace_node
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.expansion import EXPAND, lower_expansion
from edgepeft_export.graph.match import operand, operands, present
from edgepeft_export.graph.nested.branches import write_if
from edgepeft_export.graph.nested.groups import scan_groups
from edgepeft_export.graph.nested.iterations import write_loop
from edgepeft_export.graph.rounding import MIDDLE
from edgepeft_export.graph.row_rounding import RoundedRows, Shapes, round_finely, round_rows
from edgepeft_export.graph.row_steps import Step, defer_steps
from edgepeft_export.graph.shapes import repeated
from edgepeft_export.opset.domains import CONTRIB as CONTRIB
from edgepeft_export.opset.domains import DOMAIN as DOMAIN

INT8_MATMUL = "Int8MatMul"
"""``(x [..., K], w, scale, zero_point?, bias?, transposed?, sums?) -> [..., N]``: x (w - zero_point) · scale + bias.

In integer arithmetic. ``w`` is int8 or uint8, [K, N], or [N, K] with ``transB=1``, stored or expanded from 4 bits
(``edgepeft_export.graph.expansion.EXPAND``); ``scale`` and ``zero_point`` are scalars or [N]; ``bias`` is [N];
``transposed`` is wᵀ, where it is stored as well; ``sums`` [N] are the columns' sums of ``(w - zero_point) · scale``.
``x`` is rounded at run time: ``rounding`` is ``tensor``, to 8 bits with one scale for the whole tensor; ``row``, with a
scale per row, and a zero point per row where there are ``sums``; ``fine``, to 16 bits with a scale per row, in two
products; ``given`` where ``x`` is uint8 already, with the zero point ``middle``. ``gradient`` says how the gradient of
the matmul is rounded: see
``edgepeft_export.quantize.Quantization``, and ``SCORES``.
"""

SCORES = "scores"
"""A ``gradient`` of an ``INT8_MATMUL`` that computes a model's scores: rounded in several products of 7 bits.

A row of it has one entry near -1, the label's, and thousands of small probabilities. 8 bits round most of these to 0:
15 % of the probability of a trained language model, and nearly all of one that has not learnt anything. Products of 7
bits need no limit on the pairs of the transposed matrix, so that a table of tokens keeps its precision.
"""

INT8_ROWS = "Int8Rows"
"""``(indices [rows], w, transposed?) -> [rows, N]``: rows of the integers that ``INT8_MATMUL`` multiplies by."""

NO_GRADIENT = "none"
"""A ``gradient`` of an ``INT8_MATMUL`` that is part of a gradient itself."""

TRANSPOSED = 5
"""The input of an ``INT8_MATMUL`` that is the transposed matrix."""

SUMS = 6
"""The input of an ``INT8_MATMUL`` that has the columns' sums."""

FAKE_QUANTIZE = "FakeQuantize"
"""``(x, scale, zero_point)``, attribute ``axis``: x rounded to the grid of ``zero_point``'s dtype."""

STOP_GRADIENT = "StopGradient"
"""``(x) -> x``, through which no gradient passes."""

WITH_GRADIENT = "WithGradient"
"""``(y, x₁ ... xₙ, g₁ ... gₙ) -> y``, a scalar whose gradient with respect to xᵢ is gᵢ."""

CROSS_ENTROPY = "CrossEntropy"
"""``(logits [rows, classes], target [rows], class_weights?, row_weights [rows]?) -> loss_sum, loss_weight``.

Attributes: ``label_smoothing``, ``ignore_index``. ``edgepeft_export.losses.entropy`` writes it as operators, and
``edgepeft_export.chunks`` together with what computes the logits.
"""

MAP = "Map"
"""``(size, tensors ..., shared ...) -> tensors ..., sums ...``: the graph ``body`` for ``size`` indices at a time.

``body`` has slices of the tensors and the shared ones as inputs. Of its outputs the last ``sums`` are added up, and the
others joined along an axis. ``size`` is an int64 vector of length 1. Attributes: ``axis``; ``sliced``, the number of
tensors that are divided; ``exact`` where ``size`` divides the number of indices; ``wanted``, the indices of the inputs
after ``size`` whose gradient may be needed. No value of the graph around it that the body reads depends on these.
"""

BRANCH = "Branch"
"""``(condition, tensors ...) -> tensors ...``: the graph ``then`` or the graph ``otherwise``, of the same inputs.

An ``If`` reads values of the graph around it. Here those that may have a gradient are inputs.
"""

REPEAT = "Repeat"
"""``(count, condition, states ..., slices ..., shared ...) -> states ..., made ...``: a ``Loop`` or a ``Scan``.

What its body reads of the graph around it are inputs, except constants. Attributes: ``body``, and those of
``edgepeft_export.graph.nested.iterations.Iterations``.
"""


def int8_matmul(
    emit: Emitter,
    x: ir.Value,
    w: ir.Value,
    scale: ir.Value,
    zero_point: ir.Value | None = None,
    bias: ir.Value | None = None,
    transposed: ir.Value | None = None,
    sums: ir.Value | None = None,
    *,
    trans_b: int = 0,
    rounding: str = "tensor",
    gradient: str = "row",
    middle: int = 0,
) -> ir.Value:
    """Append an ``INT8_MATMUL``."""
    inputs = (x, w, scale, zero_point, bias, transposed, sums)
    settings: dict[str, int | str] = {"transB": trans_b, "rounding": rounding, "gradient": gradient}
    return emit.op(INT8_MATMUL, *inputs, domain=DOMAIN, **settings, **({"middle": middle} if middle else {}))


def lower(model: ir.Model) -> None:
    """Lower every operator of our own to kernels of stock ONNX Runtime, in place, also within loops."""
    constants, transposed = Emitter(model.graph), dict[ir.Value, ir.Value]()
    for graph in list(model.graphs()):
        _lower_graph(graph, _Lowering(constants, transposed))
        graph.opset_imports.pop(DOMAIN, None)
    if any(node.domain == CONTRIB for node in ir.traversal.RecursiveGraphIterator(model.graph)):
        model.graph.opset_imports.setdefault(CONTRIB, 1)


def _lower_graph(graph: ir.Graph, lowering: _Lowering) -> None:
    for node in [node for node in graph if node.domain == DOMAIN]:
        if node.op_type == INT8_MATMUL:
            lowering.int8_matmul(node)
        elif node.op_type == INT8_ROWS:
            lowering.int8_rows(node)
        elif node.op_type == EXPAND:
            lower_expansion(node, lowering.constants)
        elif node.op_type == FAKE_QUANTIZE:
            _lower_fake_quantize(node)
        elif node.op_type in (STOP_GRADIENT, WITH_GRADIENT):
            replace_node(node, _node(node, "Identity", [node.inputs[0]]))
        elif node.op_type == MAP:
            scan_groups(node)
        elif node.op_type == BRANCH:
            write_if(node)
        elif node.op_type == REPEAT:
            write_loop(node)
    defer_steps(lowering.steps)


class _Lowering:
    """Lowers the matmuls of a graph. Those of one tensor share its integers: queries, keys and values read the same."""

    def __init__(self, constants: Emitter, transposed: dict[ir.Value, ir.Value]) -> None:
        self.constants, self._transposed = constants, transposed
        self._tensors: dict[ir.Value, tuple[ir.Value, ...]] = {}
        self._rows: dict[tuple[ir.Value, int | None], RoundedRows] = {}
        self._shapes = Shapes()
        self.steps: list[Step] = []

    def int8_matmul(self, node: ir.Node) -> None:
        """Replace an ``INT8_MATMUL``."""
        kinds = {"row": self._by_row, "fine": self._finely, "given": self._as_given}
        lower_one = {**kinds, "tensor": self._by_tensor}
        lower_one[_rounding(node)](node)

    def _by_tensor(self, node: ir.Node) -> None:
        (x, _, scale), zero_point, bias = operands(node, 3), present(node, 3), present(node, 4)
        if x not in self._tensors:
            self._tensors[x] = _before(node, _node(node, "DynamicQuantizeLinear", [x], outputs=3))
        integers, x_scale, x_zero_point = self._tensors[x]
        inputs = [integers, self._matrix(node), x_scale, scale, x_zero_point, zero_point, bias]
        replace_node(node, _node(node, "MatMulIntegerToFloat", inputs, domain=CONTRIB))

    def _by_row(self, node: ir.Node) -> None:
        (x, _, scale), zero_point, bias = operands(node, 3), present(node, 3), present(node, 4)
        sums, one = present(node, SUMS), self.constants.scalar(1.0, like=x)
        middle = MIDDLE if sums is None else None
        if (x, middle) not in self._rows:
            self._rows[x, middle] = round_rows(x, node, self.constants, self._shapes, middle=middle)
        rows = self._rows[x, middle]
        zero = self.constants.constant(np.array(middle or 0, np.uint8))
        inputs = [rows.integers, self._matrix(node), one, scale, zero, zero_point, None]
        result = _float(node, "MatMulIntegerToFloat", *inputs, domain=CONTRIB)
        if sums is not None and rows.negative_zero is not None:
            correction = _float(node, "Mul", rows.negative_zero, sums, scope="zero/")
            result = _float(node, "Add", result, correction, scope="zero/")
        scaled = _scale(node, result, rows.step, bias)
        if node.attributes.get_string("gradient") == NO_GRADIENT and bias is None and rows.negative_zero is None:
            self.steps.append(Step(scaled, rows))

    def _finely(self, node: ir.Node) -> None:
        """One product for both halves, so that an operand that is an input is arranged for the kernel once."""
        (x, _, scale), zero_point, bias = operands(node, 3), present(node, 3), present(node, 4)
        rows = round_finely(x, node, self.constants)
        one, zero = self.constants.scalar(1.0, like=x), self.constants.constant(np.array(MIDDLE, np.uint8))
        inputs = [rows.integers, self._matrix(node), one, scale, zero, zero_point, None]
        (product,) = _before(node, _node(node, "MatMulIntegerToFloat", inputs, domain=CONTRIB))
        product.type, product.shape = node.outputs[0].type, repeated(node.outputs[0], 2)
        split = ir.node("Split", [product], {"axis": 0, "num_outputs": 2}, num_outputs=2, name=f"{node.name}/Split")
        whole, rest = _before(node, split)
        for part in (whole, rest):
            part.type, part.shape = node.outputs[0].type, node.outputs[0].shape
        small = _float(node, "Mul", rest, self.constants.scalar(0.5 / MIDDLE, like=x), scope="rest/")
        _scale(node, _float(node, "Add", whole, small, scope="rest/"), rows.step, bias)

    def _as_given(self, node: ir.Node) -> None:
        (integers, _, scale), zero_point, bias = operands(node, 3), present(node, 3), present(node, 4)
        one = self.constants.scalar(1.0, like=scale)
        zero = self.constants.constant(np.array(node.attributes.get_int("middle", 0), np.uint8))
        inputs = [integers, self._matrix(node), one, scale, zero, zero_point, bias]
        replace_node(node, _node(node, "MatMulIntegerToFloat", inputs, domain=CONTRIB))

    def int8_rows(self, node: ir.Node) -> None:
        """Replace an ``INT8_ROWS``."""
        (integers,) = _before(node, _node(node, "Gather", [self._matrix(node), operand(node)], axis=0))
        replace_node(node, _node(node, "Cast", [integers], to=ir.DataType.FLOAT.value))

    def _matrix(self, node: ir.Node) -> ir.Value:
        """The matrix as the kernel reads it, [K, N]."""
        w, stored = operand(node, 1), present(node, 2 if node.op_type == INT8_ROWS else TRANSPOSED)
        if not node.attributes.get_int("transB", 0):
            return w
        if stored is None and w not in self._transposed:  # onnxruntime does it once, when it loads the graph
            self._transposed[w] = _beside(w, _node(node, "Transpose", [w], perm=[1, 0]))
        return self._transposed[w] if stored is None else stored


def _rounding(node: ir.Node) -> str:
    return node.attributes.get_string("rounding", "tensor") or "tensor"


def _lower_fake_quantize(node: ir.Node) -> None:
    x, scale, zero_point = node.inputs
    axis = int(node.attributes.get_int("axis", 1))
    quantized = _before(node, _node(node, "QuantizeLinear", [x, scale, zero_point], axis=axis))[0]
    replace_node(node, _node(node, "DequantizeLinear", [quantized, scale, zero_point], axis=axis))


def _before(node: ir.Node, new: ir.Node) -> tuple[ir.Value, ...]:
    """Put a node in front of ``node``; returns its outputs."""
    node.prepend(new)
    return tuple(new.outputs)


def _scale(node: ir.Node, product: ir.Value, step: ir.Value, bias: ir.Value | None) -> ir.Node:
    """Replace ``node`` by ``product · step + bias``; returns the last new node."""
    if bias is not None:
        new = _node(node, "Add", [_float(node, "Mul", product, step), bias])
    else:
        new = _node(node, "Mul", [product, step])
    replace_node(node, new)
    return new


def _float(node: ir.Node, op_type: str, *inputs: ir.Value | None, domain: str = "", scope: str = "") -> ir.Value:
    """The output of a node in front of ``node``, like that of ``node``."""
    new = _node(node, op_type, list(inputs), domain=domain)
    new.name = f"{node.name}/{scope}{op_type}"
    (output,) = _before(node, new)
    output.shape, output.type = node.outputs[0].shape, node.outputs[0].type
    return output


def _beside(value: ir.Value, new: ir.Node) -> ir.Value:
    """Put a node that reads ``value`` in the graph that has it, so that loops within it do not repeat the node."""
    producer = value.producer()
    if producer is not None:
        producer.append(new)
    else:
        assert value.graph is not None
        value.graph.insert_before(value.graph[0], new)
    return new.outputs[0]


def _node(
    node: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    *,
    domain: str = "",
    outputs: int = 1,
    **attributes: int | list[int],
) -> ir.Node:
    return ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs, name=f"{node.name}/{op_type}")
