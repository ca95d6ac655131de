"""Low-rank adaptation (Hu et al., ICLR 2022) attached on the graph, without torch. The weight may be quantized.

To each chosen linear layer ``y = x W`` a branch ``x A B · alpha / rank`` is added, with A [in, rank] and B [rank, out].
To a convolution two are added, as in ``peft``: one with the kernel's window to ``rank`` channels, and a pointwise one.
The branch has the layer's input, which in a model in QDQ format is the rounded activation. So it can be folded into the
weight.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.errors import ForwardError, NoSuchMatmul
from edgepeft_export.forward.onnx_source.sites import AdapterSite, find_last, find_sites
from edgepeft_export.graph.edit import add_input, insert_on_edge
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.linear import LinearSite
from edgepeft_runtime.bundle.adapter_layout import LowRankPair
from edgepeft_runtime.errors import BadSetting
from edgepeft_runtime.names import did_you_mean

Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class GraphLora:
    """Which linear layers get a pair of matrices, and how they start.

    Attributes:
        rank: of the pairs.
        alpha: scale; ``None`` means twice the rank.
        targets: names, ends of dotted names, or patterns of linear layers: by weight, bias, module or node. ``None``
            chooses every layer but the head.
        train_head: whether the head trains too: as a whole, or by a pair where it is quantized.
        seed: of the initial values.
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
    """The result of :func:`attach_lora`.

    Attributes:
        parameters: initial values of the pairs, by the name of the new graph input.
        pairs: which of them belong together.
        head: names of the initializers of the head, where it trains as a whole.
    """

    parameters: Mapping[str, Float32Array]
    pairs: tuple[LowRankPair, ...]
    head: tuple[str, ...]


def attach_lora(model: ir.Model, lora: GraphLora, trained: Collection[str] = ()) -> Attached:
    """Attach pairs of matrices, as further graph inputs, in place. Shapes must have been inferred.

    Args:
        model: as read; quantized linear layers raised.
        lora: settings of the pairs.
        trained: names of initializers that train as a whole. Their layers get no pair.

    A is initialized uniformly within 1 / sqrt(inputs) (Kaiming, as in ``peft``) and B with zeros, so that the model's
    outputs do not change.

    Raises:
        ForwardError: the rank is out of range, or a target matches no linear layer that can have a pair.
    """
    if lora.rank < 1:
        raise BadSetting("rank", lora.rank, "1 or more")
    graph = model.graph
    sites = [site for site in find_sites(graph) if not _is_adapter(site)]
    last = find_last(graph, sites)
    whole = _whole(last) if lora.train_head and last is not None else ()
    parameters: dict[str, Float32Array] = {}
    pairs: list[LowRankPair] = []
    emit = Emitter(graph)
    for site in _chosen(sites, last, lora):
        if str(site.linear.weight.name) not in {*whole, *trained}:
            pair, values = _attach(graph, emit, site, lora)
            pairs.append(pair)
            parameters.update(values)
    graph.sort()  # the new nodes were appended at the end
    return Attached(parameters, tuple(pairs), whole)


def _is_adapter(site: AdapterSite) -> bool:
    """Whether the linear layer is part of an adapter of the file."""
    return any("lora_" in name.lower() for name in site.names)


def _whole(last: AdapterSite) -> tuple[str, ...]:
    """The initializers of a head with float weights."""
    if last.linear.is_quantized or not last.narrows:
        return ()
    bias = () if last.bias is None or last.bias.dtype != ir.DataType.FLOAT else (str(last.bias.name),)
    return (str(last.linear.weight.name), *bias)


def _chosen(sites: Sequence[AdapterSite], last: AdapterSite | None, lora: GraphLora) -> list[AdapterSite]:
    """The linear layers that get a pair. A quantized head is one of them, unless it should not train."""
    quantized_head = (
        last if last is not None and last.linear.is_quantized and last.narrows and lora.train_head else None
    )
    if lora.targets is None:
        chosen = [site for site in sites if site is not last or site is quantized_head]
        missing = [] if chosen else ["any linear layer"]
    else:
        fits = [site for site in sites if any(site.fits(pattern) for pattern in lora.targets)]
        chosen = [site for site in sites if site is quantized_head or site in fits]
        missing = [pattern for pattern in lora.targets if not any(site.fits(pattern) for site in sites)]
    if missing or not chosen:
        raise _nothing_fits(missing, sites)
    return chosen


def _nothing_fits(missing: Sequence[str], sites: Sequence[AdapterSite]) -> ForwardError:
    names = [f"{site.name} [{site.linear.inputs}, {site.linear.outputs}]" for site in sites]
    listed = f"there are: {', '.join(names[:20])}{' …' if len(names) > 20 else ''}" if names else "there is none"
    return NoSuchMatmul(
        f"LoRA cannot be attached: no layer with a constant float32 or quantized matrix fits {', '.join(missing)}.",
        context=listed,
        hint=did_you_mean(
            missing[0] if missing else "",
            [site.name for site in sites],
            "name linear layers by their weight, bias or node, such as 'query' or '*.layer.5.*'; a model in QOperator "
            "format (QLinearMatMul, QLinearConv) has to be quantized again in QDQ format.",
        ),
    )


def _attach(
    graph: ir.Graph, emit: Emitter, site: AdapterSite, lora: GraphLora
) -> tuple[LowRankPair, dict[str, Float32Array]]:
    stem = _fresh(graph, site.name)
    layout = "torch" if site.linear.kernel else "graph"
    pair = LowRankPair(stem, f"{stem}.lora_A", f"{stem}.lora_B", layout, 1, lora.rank, lora.scale)
    parameters = dict(zip((pair.a, pair.b), _first_values(site.linear, lora, pair.a), strict=True))
    a, b = (add_input(graph, name, array.shape) for name, array in parameters.items())
    emit.scope = stem
    branch = _branch(emit, site.linear, a, b, lora.scale)
    total = ir.node("Add", [site.result, branch], name=f"{stem}/lora")
    total.outputs[0].name = f"{stem}.adapted"
    insert_on_edge(site.result, total)
    return pair, parameters


def _first_values(linear: LinearSite, lora: GraphLora, name: str) -> tuple[Float32Array, Float32Array]:
    """A [in, r] and B [r, out]; of a convolution [r, in, *kernel] and [out, r, 1, ...]."""
    if linear.kernel:
        shape: tuple[int, ...] = (lora.rank, linear.inputs, *linear.kernel)
        other: tuple[int, ...] = (linear.outputs, lora.rank, *[1] * len(linear.kernel))
    else:
        shape, other = (linear.inputs, lora.rank), (lora.rank, linear.outputs)
    limit = 1.0 / np.sqrt(linear.inputs * int(np.prod(linear.kernel)))
    draw = np.random.default_rng([lora.seed, zlib.crc32(name.encode())])  # independent of the other pairs
    return draw.uniform(-limit, limit, shape).astype(np.float32), np.zeros(other, np.float32)


def _branch(emit: Emitter, linear: LinearSite, a: ir.Value, b: ir.Value, scale: float) -> ir.Value:
    if linear.kernel:
        window = {name: attribute.value for name, attribute in linear.node.attributes.items()}
        narrow = emit.op("Conv", linear.x, a, **window)
    else:
        narrow = emit.op("MatMul", linear.x, a)
    if scale != 1.0:
        narrow = emit.op("Mul", narrow, emit.constant(np.array(scale, np.float32)))
    return emit.op("Conv" if linear.kernel else "MatMul", narrow, b)


def _fresh(graph: ir.Graph, stem: str) -> str:
    """``stem``, or ``stem.1``, ... where a layer of that name has a pair, as layers with a shared weight."""
    names, name, number = {value.name for value in graph.inputs}, stem, 0
    while f"{name}.lora_A" in names:
        number += 1
        name = f"{stem}.{number}"
    return name
