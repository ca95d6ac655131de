"""Low-rank adaptation (Hu et al., ICLR 2022) attached on the graph, without torch. The weight may be quantized.

To each chosen linear layer ``y = x W`` a branch ``x A B · alpha / rank`` is added, with A [in, rank] and B [rank, out].
To a convolution two are added, as in ``peft``: one with the kernel's window to ``rank`` channels, and a pointwise one.
The branch has the layer's input, which in a model in QDQ format is the rounded activation. So it can be folded into the
weight. Layers that read one weight share one pair, as modules that share a layer do in ``peft``. Weights of recurrent
operators and transposed convolutions are changed themselves; see
``edgepeft_export.forward.onnx_source.weight_sites``.
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
from edgepeft_export.forward.onnx_source.weight_sites import WeightSite, find_weight_sites, first_values
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
    """The result of ``attach_lora``.

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
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    sites = [site for site in find_sites(nodes) if not _is_adapter(site)]
    weights = find_weight_sites(nodes, lora.rank)
    last = find_last(graph, sites)
    whole = _whole(last) if lora.train_head and last is not None else ()
    attaching = _Attaching(graph, lora)
    for site in _chosen(sites, weights, last, lora):
        weight = site.weight if isinstance(site, WeightSite) else site.linear.weight
        if str(weight.name) not in {*whole, *trained}:
            attaching.attach(site)
    graph.sort()  # the new nodes were appended at the end
    return Attached(attaching.parameters, tuple(attaching.pairs), whole)


def _is_adapter(site: AdapterSite) -> bool:
    """Whether the linear layer is part of an adapter of the file."""
    return any("lora_" in name.lower() for name in site.names)


def _whole(last: AdapterSite) -> tuple[str, ...]:
    """The initializers of a head with float weights."""
    if last.linear.is_quantized or not last.narrows:
        return ()
    bias = () if last.bias is None or last.bias.dtype != ir.DataType.FLOAT else (str(last.bias.name),)
    return (str(last.linear.weight.name), *bias)


def _chosen(
    sites: Sequence[AdapterSite], weights: Sequence[WeightSite], last: AdapterSite | None, lora: GraphLora
) -> list[AdapterSite | WeightSite]:
    """The layers that get a pair. A quantized head is one of them, unless it should not train."""
    every: list[AdapterSite | WeightSite] = [*sites, *weights]
    quantized_head = (
        last if last is not None and last.linear.is_quantized and last.narrows and lora.train_head else None
    )
    if lora.targets is None:
        chosen = [site for site in every if site is not last or site is quantized_head]
        missing = [] if chosen else ["any linear layer"]
        if last is not None and not chosen:
            raise _only_a_head(last, _integer_layers(last.linear.node))
    else:
        chosen = [
            site for site in every if site is quantized_head or any(site.fits(pattern) for pattern in lora.targets)
        ]
        missing = [pattern for pattern in lora.targets if not any(site.fits(pattern) for site in every)]
    if missing or not chosen:
        raise _nothing_fits(missing, every)
    return chosen


_INTEGER_LAYERS = frozenset({"QLinearMatMul", "QLinearConv", "QGemm", "QAttention"})
"""Layers of the format QOperator, which read and return integers."""


def _integer_layers(head: ir.Node) -> str:
    assert head.graph is not None
    return ", ".join(sorted({node.op_type for node in head.graph} & _INTEGER_LAYERS))


def _only_a_head(head: AdapterSite, others: str) -> ForwardError:
    again = f"quantize the model again in QDQ format, since {others} cannot carry a pair" if others else ""
    return NoSuchMatmul(
        f"LoRA cannot be attached: the only layer is the head {head.name}, which has no pair by default.",
        context=None,
        hint=f"{again or 'train the head as a whole (method head)'}, or name it as a target.",
    )


def _nothing_fits(missing: Sequence[str], sites: Sequence[AdapterSite | WeightSite]) -> ForwardError:
    names = [f"{site.name} {_sizes(site)}" for site in sites]
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


def _sizes(site: AdapterSite | WeightSite) -> list[int]:
    """The inputs and outputs of a layer."""
    if isinstance(site, WeightSite):
        return [site.shapes[0][1], site.shapes[1][0]]
    return [site.linear.inputs, site.linear.outputs]


class _Attaching:
    """Attaches pairs to the sites of a graph, and to those of graphs within it."""

    def __init__(self, graph: ir.Graph, lora: GraphLora) -> None:
        self.parameters: dict[str, Float32Array] = {}
        self.pairs: list[LowRankPair] = []
        self._graph, self._lora = graph, lora
        self._emitters: dict[ir.Graph, Emitter] = {}
        self._shared: dict[tuple[ir.Value, bool, tuple[int, ...]], tuple[ir.Value, ir.Value]] = {}

    def attach(self, site: AdapterSite | WeightSite) -> None:
        """Attach the pairs of one site."""
        if isinstance(site, WeightSite):
            self._change(site)
        else:
            self._add_branch(site)

    def _change(self, site: WeightSite) -> None:
        emit = self._emitter(self._graph, site.name)
        made = []
        for index in range(site.count):
            name = site.name if site.count == 1 else f"{site.name}.{('forward', 'reverse')[index]}"
            stem = self._fresh(name)
            values = first_values(site, self._draw(stem))
            made.append(self._inputs(stem, "torch", values["a"], values["b"]))
        site.add(emit, made, self._lora.scale)

    def _add_branch(self, site: AdapterSite) -> None:
        linear, graph = site.linear, site.linear.node.graph
        assert isinstance(graph, ir.Graph)
        key = linear.weight, linear.transposed, linear.kernel
        if key not in self._shared:
            stem = self._fresh(site.name)
            a, b = _first_values(linear, self._lora, self._draw(stem))
            self._shared[key] = self._inputs(stem, "torch" if linear.kernel else "graph", a, b)
        emit = self._emitter(graph, site.name)
        branch = _branch(emit, linear, *self._shared[key], self._lora.scale)
        total = ir.node("Add", [site.result, branch], name=f"{site.name}/lora")
        total.outputs[0].name = f"{site.result.name}.adapted"
        insert_on_edge(site.result, total)

    def _inputs(self, stem: str, layout: str, a: Float32Array, b: Float32Array) -> tuple[ir.Value, ir.Value]:
        """Declare a pair, and make its matrices inputs of the graph."""
        pair = LowRankPair(stem, f"{stem}.lora_A", f"{stem}.lora_B", layout, 1, self._lora.rank, self._lora.scale)
        self.pairs.append(pair)
        self.parameters |= {pair.a: a, pair.b: b}
        return add_input(self._graph, pair.a, a.shape), add_input(self._graph, pair.b, b.shape)

    def _emitter(self, graph: ir.Graph, scope: str) -> Emitter:
        if graph not in self._emitters:
            self._emitters[graph] = Emitter(graph)
        emit = self._emitters[graph]
        emit.scope = scope
        return emit

    def _draw(self, stem: str) -> np.random.Generator:
        """Random numbers that do not depend on the other pairs."""
        return np.random.default_rng([self._lora.seed, zlib.crc32(f"{stem}.lora_A".encode())])

    def _fresh(self, stem: str) -> str:
        """``stem``, or ``stem.1``, ... where another layer of that name has a pair."""
        name, number = stem, 0
        while f"{name}.lora_A" in self.parameters:
            number += 1
            name = f"{stem}.{number}"
        return name


def _first_values(linear: LinearSite, lora: GraphLora, draw: np.random.Generator) -> tuple[Float32Array, Float32Array]:
    """A [in, r] and B [r, out]; of a convolution [r, in, *kernel] and [out, r, 1, ...]."""
    if linear.kernel:
        shape: tuple[int, ...] = (lora.rank, linear.inputs, *linear.kernel)
        other: tuple[int, ...] = (linear.outputs, lora.rank, *[1] * len(linear.kernel))
    else:
        shape, other = (linear.inputs, lora.rank), (lora.rank, linear.outputs)
    limit = 1.0 / np.sqrt(linear.inputs * int(np.prod(linear.kernel)))
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
