"""What a model with a trained prompt gives: the outputs for its input alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from edgepeft.methods.support.prefix_cache import accept_past_key_values
from edgepeft_export.losses import FIRST_LOGITS


def align_outputs(model: nn.Module) -> nn.Module:
    """Let a ``PeftModel`` with a prompt give logits for its input alone, and one with a prefix run, in place."""
    config: Any = getattr(model, "active_peft_config", None)
    if getattr(config, "peft_type", None) == "PREFIX_TUNING":
        accept_past_key_values(model)
    prompts = getattr(config, "peft_type", None) in ("PROMPT_TUNING", "P_TUNING")
    trimmed = any(isinstance(hook, _Trim) for hook in model._forward_hooks.values())
    if prompts and config.task_type == "CAUSAL_LM" and not trimmed:
        model.register_forward_hook(_Trim(config.num_virtual_tokens))
    return model


@dataclass(frozen=True)
class _Trim:
    """Leaves out the logits at the prompt's positions, where labels have none.

    The last of them predict the input's first token, which peft trains too: they become an output of their own.
    """

    tokens: int

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        output[FIRST_LOGITS] = output.logits[:, self.tokens - 1]
        output.logits = output.logits[:, self.tokens :]
        return output
