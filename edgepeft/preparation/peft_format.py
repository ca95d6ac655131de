"""Record in a bundle's provenance how its parameters become a PEFT adapter again."""

from __future__ import annotations

import json
import warnings
from itertools import permutations

from torch import Tensor, nn

from edgepeft_export.forward.torch_source.shared_storage import views_of
from edgepeft_runtime.files.schema import Json


def peft_provenance(model: nn.Module) -> Json:
    """Return how a trained ``PeftModel`` is written as an adapter; empty for other models.

    ``{"peft": {"config": …, "keys": {parameter: key in adapter_model.safetensors},
    "tied": {further key: [parameter, its axes in the key's order]}}}``
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError:
        return {}
    if not isinstance(model, PeftModel):
        return {}
    config = model.peft_config[model.active_adapter].to_dict()
    if config.get("save_projection"):
        # VeRA's random matrices do not train, and peft draws them again from their seed.
        config["save_projection"] = False
    views = views_of(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and name not in views}
    names = {parameter.data_ptr(): name for name, parameter in trained.items()}
    with warnings.catch_warnings():  # a base without config.json, such as a .gguf file, has the vocabulary it was given
        warnings.filterwarnings("ignore", message="Could not find a config file")
        state = get_peft_model_state_dict(model, adapter_name=model.active_adapter)
    # peft names a saved tensor differently from its parameter. Both share their memory, which identifies the parameter,
    # and the strides show whether the tensor is transposed.
    keys: dict[str, str] = {}
    tied: dict[str, tuple[str, list[int]]] = {}
    for key, tensor in state.items():
        name = names.get(tensor.data_ptr())
        if name is None:
            continue
        axes = _axes(trained[name], tensor)
        if axes != sorted(axes) or keys.setdefault(name, key) != key:
            tied[key] = name, axes
    return {"peft": {"config": json.loads(json.dumps(config, default=_plain)), "keys": keys, "tied": tied}}


def _axes(owner: Tensor, view: Tensor) -> list[int]:
    """Return the owner's axes in the order of the view's."""
    orders = (list(axes) for axes in permutations(range(owner.ndim)))
    return next(axes for axes in orders if owner.permute(axes).stride() == view.stride())


def linear_weights(model: nn.Module) -> list[str]:
    """Return the names of the weights of linear layers, the only ones that peft's SHiRA can change."""
    return [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _plain(value: object) -> object:
    if isinstance(value, (set, frozenset, tuple)):
        return sorted(value)
    return getattr(value, "value", None) or str(value)
