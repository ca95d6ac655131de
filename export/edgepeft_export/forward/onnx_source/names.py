"""The names by which users may choose a layer of a graph."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir

_ENDINGS = re.compile(
    r"((_DQ)?_Q[48]\w*|_quantized|_quant|_qweight|_[Tt]ransposed|\.T|[._](weight|kernel|W)|[./](MatMul|Gemm|Conv))$"
)
_ANONYMOUS = re.compile(
    r"(onnx::.*|(val|t|transpose|tensor|initializer|constant|const|weight|_val)?_?[\d_.]*)$", re.IGNORECASE
)
_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata in which torch's exporter keeps the names of the modules a node comes from."""


def fits(names: Sequence[str], pattern: str) -> bool:
    """Whether a pattern, or the end of a dotted name, means a layer of these names."""
    return any(fnmatchcase(name, pattern) or name.endswith(f".{pattern}") for name in names)


def names_of(node: ir.Node, weight: ir.Value, bias: ir.Value | None) -> Iterator[str]:
    """The names of a layer, the best first: by its weight, its bias, the module it comes from, its node."""
    stems = [_stem(str(weight.name)), _stem(str(bias.name), "bias") if bias is not None else "", _scope(node)]
    names = [stem for stem in stems if not _ANONYMOUS.fullmatch(stem)]
    node_name = (node.name or "").strip("/")
    names += [_stem(node_name).replace("/", "."), node_name, str(weight.name)]
    yield from dict.fromkeys(name for name in names if name)


def _stem(name: str, ending: str | None = None) -> str:
    """A tensor's name without the suffixes of exporters and quantizers."""
    while (short := _ENDINGS.sub("", name)) and short != name:
        name = short
    return name if ending is None else re.sub(rf"[._]{ending}$", "", name)


def _scope(node: ir.Node) -> str:
    scopes = [part.strip(" '\"") for part in node.metadata_props.get(_SCOPES, "").strip("[]").split(",")]
    modules = [part for part in scopes[:-1] if part]  # the last is the operator's
    return modules[-1] if modules else ""
