"""Low-rank adaptation (Hu et al., ICLR 2022) attached on the graph: no torch, and the weight may be packed.

Beside each chosen product ``y = x W`` stands ``x A B · alpha / rank``; A is [in, rank] and B is [rank, out]. Beside a
convolution stand two, as in ``peft``: one with the kernel's window to ``rank`` channels, and a pointwise one. The
branch reads what the product reads: of a model in QDQ format, the rounded activation. So it corrects what this layer
does with what it gets, and could be folded into the weight.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.forward.graph import ForwardError
from edgepeft_export.forward.onnx_source.sites import Site, find_last, find_sites
from edgepeft_export.graph.emit import Emitter
from edgepeft_runtime.bundle.adapter_layout import LowRankPair

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class GraphLora:
    """Which products get a pair of matrices, and how they start.

    Attributes:
        rank: of the pairs.
        alpha: scale; ``None`` means twice the rank.
        targets: names, ends of dotted names, or patterns of products: by weight, bias, module or node. ``None`` takes
        every product but the head.
        train_head: whether the head trains beside the others: whole, or by a pair where it is packed.
        seed: of the first values.
    """

    rank: int = 8
    alpha: float | None = None
    targets: Sequence[str] | None = None
    train_head: bool = True
    seed: int = 0

    @property
    def scale(self) -> float:
        """``alpha / rank``."""
        return 2.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True)
class Attached:
    """What :func:`attach_lora` did.

    Attributes:
        parameters: first values of the pairs, by the name of the new graph input.
        pairs: which of them belong together.
        head: names of the initializers of the head that is to train whole.
    """

    parameters: Mapping[str, Floats]
    pairs: tuple[LowRankPair, ...]
    head: tuple[str, ...]


def attach_lora(model: ir.Model, lora: GraphLora, trained: Collection[str] = ()) -> Attached:
    """Attach pairs of matrices, as further graph inputs, in place; shapes must have been inferred.

    Args:
        model: as read; packed products raised.
        lora: what to attach.
        trained: names of initializers that train whole, so that nothing is attached beside them.

    A starts uniform within 1 / sqrt(inputs) (Kaiming, as ``peft`` has it), B at zero: the model starts as it was.

    Raises:
        ForwardError: the rank is out of range, or a target fits no product that can carry a pair.
    """
    if lora.rank < 1:
        raise ForwardError(
            "method-setting", f"rank = {lora.rank} is out of range.", context=None, hint="choose 1 or more."
        )
    graph = model.graph
    sites = [site for site in find_sites(graph) if not _is_adapter(site)]
    last = find_last(graph, sites)
    whole = _whole(last) if lora.train_head and last is not None else ()
    parameters: dict[str, Floats] = {}
    pairs: list[LowRankPair] = []
    emit = Emitter(graph)
    for site in _chosen(sites, last, lora):
        if str(site.weight.name) not in {*whole, *trained}:
            pair, values = _attach(graph, emit, site, lora)
            pairs.append(pair)
            parameters.update(values)
    graph.sort()  # the new nodes were appended at the end
    return Attached(parameters, tuple(pairs), whole)


def _is_adapter(site: Site) -> bool:
    """Whether the file brings the product as part of an adapter of its own."""
    return any("lora_" in name.lower() for name in site.names)


def _whole(last: Site) -> tuple[str, ...]:
    """The initializers of a head with float weights."""
    if last.is_packed or not last.narrows:
        return ()
    bias = () if last.bias is None or last.bias.dtype != ir.DataType.FLOAT else (str(last.bias.name),)
    return (str(last.weight.name), *bias)


def _chosen(sites: Sequence[Site], last: Site | None, lora: GraphLora) -> list[Site]:
    """The products that get a pair; a packed head is one of them, unless it is not to train."""
    packed_head = last if last is not None and last.is_packed and last.narrows and lora.train_head else None
    if lora.targets is None:
        chosen = [site for site in sites if site is not last or site is packed_head]
        missing = [] if chosen else ["any product"]
    else:
        fits = [site for site in sites if any(site.fits(pattern) for pattern in lora.targets)]
        chosen = [site for site in sites if site is packed_head or site in fits]
        missing = [pattern for pattern in lora.targets if not any(site.fits(pattern) for site in sites)]
    if missing or not chosen:
        raise _nothing_fits(missing, sites)
    return chosen


def _nothing_fits(missing: Sequence[str], sites: Sequence[Site]) -> ForwardError:
    names = [f"{site.name} [{site.inputs}, {site.outputs}]" for site in sites]
    listed = f"there are: {', '.join(names[:20])}{' …' if len(names) > 20 else ''}" if names else "there is none"
    return ForwardError(
        "no-such-product",
        f"LoRA cannot be attached: no product with a constant float32 or packed matrix fits {', '.join(missing)}.",
        context=listed,
        hint="name products by their weight, bias or node, such as 'query' or '*.layer.5.*'; a model in QOperator "
        "format (QLinearMatMul, QLinearConv) has to be quantized again in QDQ format.",
    )


def _attach(graph: ir.Graph, emit: Emitter, site: Site, lora: GraphLora) -> tuple[LowRankPair, dict[str, Floats]]:
    stem = _fresh(graph, site.name)
    layout = "torch" if site.kernel else "graph"
    pair = LowRankPair(stem, f"{stem}.lora_A", f"{stem}.lora_B", layout, 1, lora.rank, lora.scale)
    parameters = dict(zip((pair.a, pair.b), _first_values(site, lora, pair.a), strict=True))
    a, b = (_input(graph, name, array) for name, array in parameters.items())
    emit.scope = stem
    _add_beside(graph, site, stem, _branch(emit, site, a, b, lora.scale))
    return pair, parameters


def _first_values(site: Site, lora: GraphLora, name: str) -> tuple[Floats, Floats]:
    """A [in, r] and B [r, out]; of a convolution [r, in, *kernel] and [out, r, 1, ...]."""
    if site.kernel:
        shape: tuple[int, ...] = (lora.rank, site.inputs, *site.kernel)
        other: tuple[int, ...] = (site.outputs, lora.rank, *[1] * len(site.kernel))
    else:
        shape, other = (site.inputs, lora.rank), (lora.rank, site.outputs)
    limit = 1.0 / np.sqrt(site.inputs * int(np.prod(site.kernel)))
    draw = np.random.default_rng([lora.seed, zlib.crc32(name.encode())])  # each on its own: targets may be added
    return draw.uniform(-limit, limit, shape).astype(np.float32), np.zeros(other, np.float32)


def _branch(emit: Emitter, site: Site, a: ir.Value, b: ir.Value, scale: float) -> ir.Value:
    x = site.node.inputs[0]
    assert x is not None
    if site.kernel:
        window = {name: attribute.value for name, attribute in site.node.attributes.items()}
        narrow = emit.op("Conv", x, a, **window)
    else:
        narrow = emit.op("MatMul", x, a)
    if scale != 1.0:
        narrow = emit.op("Mul", narrow, emit.constant(np.array(scale, np.float32)))
    return emit.op("Conv" if site.kernel else "MatMul", narrow, b)


def _add_beside(graph: ir.Graph, site: Site, stem: str, branch: ir.Value) -> None:
    """Let all readers of the product read its sum with the branch."""
    result = site.result
    total = ir.Value(name=f"{stem}.adapted", shape=result.shape, type=result.type)
    is_output = result.is_graph_output()
    result.replace_all_uses_with(total, replace_graph_outputs=True)
    if is_output:
        total.name, result.name = result.name, f"{result.name}.base"
    graph.append(ir.node("Add", [result, branch], outputs=[total], name=f"{stem}/lora"))


def _input(graph: ir.Graph, name: str, array: Floats) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(value)
    return value


def _fresh(graph: ir.Graph, stem: str) -> str:
    """``stem``, or ``stem.1``, ... where a product of that name has a pair: the products of a shared weight."""
    taken, name, number = {value.name for value in graph.inputs}, stem, 0
    while f"{name}.lora_A" in taken:
        number += 1
        name = f"{stem}.{number}"
    return name
