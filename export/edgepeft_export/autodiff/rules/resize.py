"""Resampling along axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgepeft_export.autodiff.registry import ZERO, Gradients, NoGradientForCase, rule
from edgepeft_export.graph.constants import known
from edgepeft_export.graph.emit import Attribute, Emitter
from edgepeft_export.graph.match import operand, present
from edgepeft_export.graph.shapes import dims_of, dtype_of, rank, static_dims

_CROP = "tf_crop_and_resize"


@rule("Resize")
def resize(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """Along each axis y = M x, with a matrix that depends on sizes, mode and scale alone: dx = Mᵀ dy, axis after axis.

    The forward operator itself computes Mᵀ: it resamples the columns of the identity. So every mode has a gradient, and
    sizes may be free. Scales, sizes and the region that is read are no numbers that train.
    """
    resampling = _Resampling(node, emit)
    for axis in resampling.axes:
        dy = _contract(dy, resampling.transposed_matrix(axis), axis, rank(operand(node)), emit)
    return dy, ZERO, ZERO


@dataclass(frozen=True)
class _Resampling:
    """A node, read axis by axis."""

    node: ir.Node
    emit: Emitter

    @property
    def x(self) -> ir.Value:
        return operand(self.node)

    @property
    def _named(self) -> list[int]:
        """The axes that scales and sizes are given for, in their order."""
        given = self.node.attributes.get_ints("axes", None)
        axes = range(rank(self.x)) if given is None else given
        return [axis % rank(self.x) for axis in axes]

    @property
    def axes(self) -> list[int]:
        """The axes that may change."""
        return [axis for index, axis in enumerate(self._named) if not self._is_copied(index, axis)]

    def _is_copied(self, index: int, axis: int) -> bool:
        if self._mode() == _CROP:
            return False
        if self._scales is not None:
            factors = known(self._scales)
            return factors is not None and float(factors[index]) == 1.0
        have, made = dims_of(self.x)[axis], dims_of(self.node.outputs[0])[axis]
        return have == made and have is not None

    @property
    def _scales(self) -> ir.Value | None:
        """The node's scales, where it has these and no sizes: an empty vector is none."""
        scales = present(self.node, 2)
        return None if scales is None or static_dims(scales) == [0] else scales

    def _mode(self) -> str:
        return self.node.attributes.get_string("coordinate_transformation_mode", "half_pixel") or "half_pixel"

    def transposed_matrix(self, axis: int) -> ir.Value:
        """Mᵀ, [in, out]: the rows of the identity, resampled."""
        index, emit = self._named.index(axis), self.emit
        size = emit.dim(self.x, axis)
        zeros = emit.zeros(emit.op("Concat", size, size, axis=0), like=self.x)
        identity = emit.op("EyeLike", zeros)
        inputs = identity, self._region(index), *self._factors(index, axis, size)
        return emit.op("Resize", *inputs, domain="", **self._attributes())

    def _region(self, index: int) -> ir.Value | None:
        roi = present(self.node, 1)
        if self._mode() != _CROP or roi is None:
            return None
        count = len(self._named)
        start, end = (self._entry(roi, at) for at in (index, index + count))
        zero, one = (self.emit.constant(np.array([number], dtype_of(roi).numpy())) for number in (0, 1))
        return self.emit.op("Concat", zero, start, one, end, axis=0)

    def _factors(self, index: int, axis: int, size: ir.Value) -> tuple[ir.Value | None, ...]:
        """Scales or sizes of the two axes of the identity, as the node has one or the other."""
        if self._scales is not None:
            one = self.emit.constant(np.ones(1, np.float32))
            return (self.emit.op("Concat", one, self._entry(self._scales, index), axis=0),)
        self._refuse_rounded_scale()
        return None, self.emit.op("Concat", size, self.emit.dim(self.node.outputs[0], axis), axis=0)

    def _refuse_rounded_scale(self) -> None:
        """Where an aspect ratio is kept, one scale applies to all axes, and a rounded size says another."""
        if self.node.attributes.get_string("keep_aspect_ratio_policy", "stretch") == "stretch":
            return
        sizes = [(dims_of(self.x)[axis], dims_of(self.node.outputs[0])[axis]) for axis in self._named]
        numbers = [(have, made) for have, made in sizes if isinstance(have, int) and isinstance(made, int)]
        if len(numbers) < len(sizes) or len({made / have for have, made in numbers}) > 1:
            raise NoGradientForCase(
                self.node, "it keeps the aspect ratio of sizes that round it", "give it sizes of one ratio, or scales"
            )

    def _entry(self, vector: ir.Value, index: int) -> ir.Value:
        content = known(vector)
        if content is not None:
            return self.emit.constant(content[index : index + 1])
        return self.emit.op("Slice", vector, self.emit.ints(index), self.emit.ints(index + 1), self.emit.ints(0))

    def _attributes(self) -> dict[str, Attribute]:
        """Those of the node, for a matrix of which no index is outside: nothing comes from there."""
        dropped = {"axes", "keep_aspect_ratio_policy", "extrapolation_value"}
        kept = {name: given.value for name, given in self.node.attributes.items() if name not in dropped}
        return {**kept, "extrapolation_value": 0.0}


def _contract(dy: ir.Value, matrix: ir.Value, axis: int, of_rank: int, emit: Emitter) -> ir.Value:
    """Σ_o dy[..., o, ...] Mᵀ[i, o], in place of the axis of o."""
    if axis == of_rank - 2:
        return emit.op("MatMul", matrix, dy)
    if axis == of_rank - 1:
        return emit.op("MatMul", dy, emit.op("Transpose", matrix, perm=[1, 0]))
    swapped = list(range(of_rank))
    swapped[axis], swapped[-2] = swapped[-2], swapped[axis]
    return emit.op("Transpose", emit.op("MatMul", matrix, emit.op("Transpose", dy, perm=swapped)), perm=swapped)
