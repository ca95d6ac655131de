"""Compute the embeddings that ``peft`` stores for a prompt in place of its encoder."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from edgepeft_runtime.files.schema import Json
from edgepeft_runtime.files.tensorfile import Array

KEY = "prompt_embeddings"
_ENCODER = "prompt_encoder.default."


def is_prompt(config: Json) -> bool:
    """Whether an adapter's configuration belongs to a method that trains a prompt or a prefix."""
    return config["peft_type"] in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")


def split_prompt(parameters: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the encoder's parameters, and the others."""
    encoder = {name: array for name, array in parameters.items() if name.startswith(_ENCODER)}
    return encoder, {name: array for name, array in parameters.items() if name not in encoder}


def baked_prompt(config: Json, encoder: Mapping[str, Array]) -> Array:
    """Return the prompt [tokens, width], or the prefix [tokens, 2 · layers · width], that the encoder computes."""
    state = {name.removeprefix(_ENCODER): torch.from_numpy(np.array(array)) for name, array in encoder.items()}
    if state.keys() == {"embedding.weight"}:
        return np.asarray(state["embedding.weight"].numpy())
    from peft import PrefixEncoder, PrefixTuningConfig, PromptEncoder, PromptEncoderConfig

    prefix = config["peft_type"] == "PREFIX_TUNING"
    settings = {**config, "inference_mode": False}
    encoder_class, config_class = (
        (PrefixEncoder, PrefixTuningConfig) if prefix else (PromptEncoder, PromptEncoderConfig)
    )
    module = encoder_class(config_class(**settings)).eval()
    module.load_state_dict(state)
    with torch.no_grad():
        baked: Array = module(torch.arange(len(state["embedding.weight"]))[None])[0].numpy()
    return baked
