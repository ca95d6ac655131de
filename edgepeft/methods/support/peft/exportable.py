"""Write adapters of ``peft`` by operations that the exporter translates, with the same results."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgepeft.methods.support.peft.rotations import rotations_of_squares, rotations_of_vectors
from edgepeft.methods.support.peft.transforms import rewrite

if TYPE_CHECKING:
    from peft.tuners.lora.layer import MultiheadAttention
    from peft.tuners.tuners_utils import BaseTunerLayer


def with_exportable_adapters(model: nn.Module) -> nn.Module:
    """Let adapters that read frozen weights, transform, or adapt ``nn.MultiheadAttention`` be exported, in place."""
    from peft.tuners.boft.layer import BOFTLayer
    from peft.tuners.lora.layer import MultiheadAttention
    from peft.tuners.oft.layer import OFTRotationModule
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in list(nn.Module.modules(model)):
        rewrite(module)
        if isinstance(module, BaseTunerLayer) and getattr(module, "quantization_backend", None) is None:
            module.get_base_weight = partial(_weight_of, module)
        if isinstance(module, OFTRotationModule) and not module.use_cayley_neumann:
            module._cayley_batch = rotations_of_vectors
        elif isinstance(module, BOFTLayer):
            module.cayley_batch = rotations_of_squares
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
