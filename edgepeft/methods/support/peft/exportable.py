"""Write adapters of ``peft`` by operations that the exporter translates, with the same results."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft.tuners.lora.layer import MultiheadAttention
    from peft.tuners.tuners_utils import BaseTunerLayer

_STEPS = 14
"""Newton's steps. The residual is squared by each, so rotations of a norm of 40 and more are inverted exactly."""


def with_exportable_adapters(model: nn.Module) -> nn.Module:
    """Let adapters that read frozen weights, rotate, or adapt ``nn.MultiheadAttention`` be exported, in place."""
    from peft.tuners.boft.layer import BOFTLayer
    from peft.tuners.lora.layer import MultiheadAttention
    from peft.tuners.oft.layer import OFTRotationModule
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in list(nn.Module.modules(model)):
        if isinstance(module, BaseTunerLayer) and getattr(module, "quantization_backend", None) is None:
            module.get_base_weight = partial(_weight_of, module)
        if isinstance(module, OFTRotationModule) and not module.use_cayley_neumann:
            module._cayley_batch = _rotations_of_vectors
        elif isinstance(module, BOFTLayer):
            module.cayley_batch = _rotations_of_squares
        elif isinstance(module, MultiheadAttention):
            times, projection = _times_of_projection(), module.get_base_layer().out_proj
            projection.scaling = {adapter: times * scale for adapter, scale in projection.scaling.items()}
            module._restore_weights = _nothing
            module.forward = partial(_attend, module, times)
    return model


def _weight_of(layer: BaseTunerLayer) -> Tensor:
    """Return the frozen weight. peft reads ``weight.data``, which torch.export takes for a new tensor."""
    weight: Tensor = layer.get_base_layer().weight
    return weight.detach()


def rotations(skew: Tensor) -> Tensor:
    """Return Cayley's transform (I - Q)(I + Q)^-1 = 2(I + Q)^-1 - I of skew-symmetric ``[matrices, n, n]``.

    The inverse is found by Newton's iteration X <- X(2I - (I + Q)X) (Schulz, 1933). It starts at the transposed matrix
    divided by a bound of its largest singular value's square, 1 + |Q|²/2, from where it always converges. The last step
    alone has a gradient, which is that of the inverse: -X dQ X.
    """
    one = torch.eye(skew.shape[-1], dtype=skew.dtype)
    matrix = one + skew
    bound = 1 + 0.5 * skew.square().sum((-2, -1), keepdim=True)
    inverse = ((one - skew) / bound).detach()
    constant = matrix.detach()
    for _ in range(_STEPS):
        inverse = inverse @ (2 * one - constant @ inverse)
    inverse = inverse.detach()
    inverse = inverse @ (2 * one - matrix @ inverse)
    return 2 * inverse - one


def _rotations_of_vectors(vectors: Tensor, size: int, *_: object) -> Tensor:
    """Return OFT's rotations of the elements above the diagonal, ``[matrices, elements]``."""
    rows, columns = torch.triu_indices(size, size, 1)
    above = vectors.new_zeros(len(vectors), size * size).index_copy(1, rows * size + columns, vectors)
    square = above.unflatten(1, (size, size))
    return rotations(square - square.transpose(1, 2))


def _rotations_of_squares(squares: Tensor) -> Tensor:
    """Return BOFT's rotations of ``[matrices, n, n]``."""
    return rotations(0.5 * (squares - squares.transpose(1, 2)))


def _attend(layer: MultiheadAttention, times: float, query: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Call the attention with LoRA in its weights, which peft writes into the layer and takes out again."""
    base = layer.get_base_layer()
    projection = base.out_proj
    changed = {
        "in_proj_weight": _adapted(layer, base.in_proj_weight),
        "out_proj.base_layer.weight": _adapted(projection, projection.base_layer.weight, times),
    }
    return torch.func.functional_call(base, changed, (query, *args), kwargs)


def _adapted(layer: Any, weight: Tensor, times: float = 1.0) -> Tensor:
    """Return a weight with the products of its adapters, of which only one time has a gradient."""
    for adapter in layer.active_adapters:
        if adapter in layer.lora_A:
            delta = layer.get_delta_weight(adapter)
            weight = weight + (delta if times == 1 else delta / times + (delta - delta / times).detach())
    return weight


@cache
def _times_of_projection() -> float:
    """Return how many times peft adds LoRA to the output projection: 0.21 does so twice, when it merges and runs.

    The second time is outside of autograd. An adapter that is trained otherwise has other outputs in peft.
    """
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=()), torch.no_grad():
        alone = nn.ModuleDict({"attention": nn.MultiheadAttention(1, 1)})
        before = alone["attention"].out_proj.weight.item()
        adapted = get_peft_model(alone, LoraConfig(target_modules=["attention"], r=1, lora_alpha=1))
        projection = adapted.base_model.model["attention"].base_layer.out_proj
        for pair in (projection.lora_A, projection.lora_B):
            pair["default"].weight.fill_(1.0)
        return float(round(adapted.merge_and_unload()["attention"].out_proj.weight.item() - before, 3))


def _nothing() -> None:
    """Leave the weights registered, which nothing has replaced."""
