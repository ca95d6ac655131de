"""Reduce the outputs of a model with a trained prompt to those of its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from edgepeft.methods.support.prefix_cache import accept_past_key_values
from edgepeft_export.losses import FIRST_LOGITS

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers.utils import ModelOutput


def align_outputs(model: nn.Module) -> nn.Module:
    """Let a ``PeftModel`` with a prompt return logits for its input alone, and one with a prefix run, in place."""
    config: PeftConfig | None = getattr(model, "active_peft_config", None)
    if config is None:
        return model
    if config.peft_type == "PREFIX_TUNING":
        accept_past_key_values(model)
    prompts = config.peft_type in ("PROMPT_TUNING", "P_TUNING")
    trimmed = any(isinstance(hook, _Trim) for hook in model._forward_hooks.values())
    if prompts and config.task_type == "CAUSAL_LM" and not trimmed:
        model.register_forward_hook(_Trim(config.num_virtual_tokens))
    return model


@dataclass(frozen=True)
class _Trim:
    """Drops the logits at the positions of the prompt, which has no labels.

    The last of them predict the input's first token, which peft trains too, so they become a separate output.
    """

    tokens: int

    def __call__(self, _module: nn.Module, _inputs: object, output: ModelOutput) -> ModelOutput:
        output[FIRST_LOGITS] = output.logits[:, self.tokens - 1]
        output.logits = output.logits[:, self.tokens :]
        return output
