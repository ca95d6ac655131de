"""Write adapters of ``peft`` that use Fourier transforms, sparse tensors or solves by products of matrices."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgepeft.methods.support.peft.rotations import orthonormal, rotations, skew_of_vectors

if TYPE_CHECKING:
    from peft.tuners.c3a.layer import C3ALinear
    from peft.tuners.deft.layer import DeftLinear
    from peft.tuners.fourierft.layer import FourierFTLayer
    from peft.tuners.hra.layer import HRAConv2d, HRALinear
    from peft.tuners.psoft.layer import OrthLayer
    from peft.tuners.shira.layer import ShiraLayer


def rewrite(module: nn.Module) -> None:
    """Let one layer of these kinds compute the same with operators that the exporter translates, in place."""
    from peft.tuners.c3a.layer import C3ALinear
    from peft.tuners.deft.layer import DeftLinear
    from peft.tuners.fourierft.layer import FourierFTLayer
    from peft.tuners.hra.layer import HRAConv2d, HRALinear
    from peft.tuners.psoft.layer import OrthLayer
    from peft.tuners.shira.layer import ShiraLayer

    if isinstance(module, FourierFTLayer):
        module.get_delta_weight = partial(_waves, module)
    elif isinstance(module, ShiraLayer):
        module.get_delta_weight = partial(_dense, module)
    elif isinstance(module, C3ALinear):
        module.forward = partial(_circulant, module)
    elif isinstance(module, HRALinear | HRAConv2d):
        module.forward = partial(_reflected, module)
    elif isinstance(module, DeftLinear):
        module._project = partial(_projection, module)
    elif isinstance(module, OrthLayer):
        module._skew_symmetric = partial(_skew, module)
        module._project_Q = _projected
        if module.orth and not module.use_cayley_neumann:
            module.get_matrix = partial(_rotation, module)


def _waves(layer: FourierFTLayer, adapter: str) -> Tensor:
    """Return FourierFT's change of the weight, the real part of an inverse transform of few frequencies.

    Of a real coefficient it is a cosine of a sum of angles, which is cos · cos - sin · sin.
    """
    sizes = (layer.out_features, layer.in_features)
    rows, columns = (
        (torch.arange(size)[:, None] * numbers.to(torch.int64) % size) * (2 * math.pi / size)
        for size, numbers in zip(sizes, layer.indices[adapter], strict=True)
    )
    spectrum = layer.fourierft_spectrum[adapter] * (layer.fourierft_scaling[adapter] / math.prod(sizes))
    real = (rows.cos() * spectrum) @ columns.cos().T
    return real - (rows.sin() * spectrum) @ columns.sin().T


def _dense(layer: ShiraLayer, adapter: str) -> Tensor:
    """Return SHiRA's change of the weight as a matrix."""
    rows, columns = layer.shira_indices[adapter].to(torch.int64)
    values = (layer.shira_weight[adapter] * layer.scaling[adapter])[None]
    flat = values.new_zeros(1, layer.out_features * layer.in_features)
    return flat.index_copy(1, rows * layer.in_features + columns, values).view(layer.out_features, layer.in_features)


def _circulant(layer: C3ALinear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Call a linear layer with C3A: a matrix of circulant blocks, whose rows are shifted copies of a kernel."""
    result = layer.base_layer(x, *args, **kwargs)
    for adapter in layer.active_adapters:
        if adapter in layer.c3a_kernel:
            kernel = layer.c3a_kernel[adapter]
            numbers = torch.arange(kernel.shape[2])
            shifted = (numbers - numbers[:, None]) % len(numbers)
            blocks = kernel.index_select(2, shifted.flatten()).unflatten(2, shifted.shape).transpose(1, 2)
            result = result + F.linear(x, blocks.reshape(layer.out_features, -1) / layer.in_features)
    return result


def _reflected(layer: HRALinear | HRAConv2d, x: Tensor) -> Tensor:
    """Call a layer with HRA: its weight times a product of reflections."""
    base = layer.get_base_layer()
    weight = base.weight.detach().flatten(1)
    for adapter in layer.active_adapters:
        if adapter in layer.hra_u:
            weight = weight @ layer.get_delta_weight(adapter)
    if isinstance(base, nn.Linear):
        return F.linear(x, weight, base.bias)
    weight = weight.view_as(base.weight)
    return F.conv2d(x, weight, base.bias, stride=base.stride[0], padding=base.padding[0])  # as peft, without dilation


def _projection(layer: DeftLinear, matrix: Tensor, adapter: str) -> tuple[Tensor, Tensor]:
    """Return DEFT's directions, and what is projected onto them."""
    if layer.deft_decomposition[adapter] == "qr":
        directions = orthonormal(matrix)
        return directions, directions
    projection: tuple[Tensor, Tensor] = type(layer)._project(layer, matrix, adapter)
    return projection


def _skew(layer: OrthLayer) -> Tensor:
    return skew_of_vectors(layer.weight[None], layer.size)[0]


def _rotation(layer: OrthLayer) -> Tensor:
    """Return PSOFT's matrix (I + Q)(I - Q)^-1, with its rows and columns scaled."""
    matrix = rotations(-_skew(layer)[None])[0]
    if layer.vector_b is not None:
        matrix = layer.vector_b[:, None] * matrix
    return matrix if layer.vector_a is None else matrix * layer.vector_a


def _projected(skew: Tensor, eps: float) -> Tensor:
    """Return a matrix, shortened to the norm ``eps`` if its norm is greater."""
    norm = skew.square().sum().clamp(min=eps**2).sqrt()
    return skew * (eps / norm)
