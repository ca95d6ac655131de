"""Kinds of work, by operator."""

from __future__ import annotations

import re

PRODUCTS, ROUNDING, REDUCTIONS, LAYOUT, ELEMENTWISE, LOOPS = KINDS = (
    "products",
    "rounding",
    "reductions",
    "layout",
    "elementwise",
    "loops",
)

_PATTERNS = (
    (ROUNDING, r"(Dynamic)?QuantizeLinear|DequantizeLinear|Round"),
    (PRODUCTS, r".*(MatMul|Gemm|Conv|Attention|Einsum|GRU|LSTM|RNN).*"),
    (REDUCTIONS, r"Reduce.*|.*Softmax|.*Norm(alization)?|.*Pool|ArgMax|ArgMin|CumSum|TopK|Sum"),
    (
        LAYOUT,
        r"Transpose|Reshape|Concat|Slice|Split.*|Gather.*|Scatter.*|Expand|Tile|Pad|Reorder.*|Unsqueeze|Squeeze|Flatten|Cast|Identity|Shape|Size|Constant.*|Range|Compress|NonZero|OneHot",
    ),
    (LOOPS, r"Loop|Scan|If|Sequence.*"),
)


def kind_of(operator: str) -> str:
    """Return the kind of work of an operator; what is none of the others is elementwise."""
    return next((kind for kind, pattern in _PATTERNS if re.fullmatch(pattern, operator)), ELEMENTWISE)
