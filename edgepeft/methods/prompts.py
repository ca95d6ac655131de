"""Methods that train what a transformer reads before its input: prompts and prefixes. By Hugging Face ``peft``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from edgepeft.methods.base import Method, MethodError
from edgepeft.methods.support.peft_methods import attach_peft
from edgepeft.methods.support.prefix_cache import accept_past_key_values
from edgepeft_runtime.settings import setting

if TYPE_CHECKING:
    from torch import nn

_TOKENS = "Number of trained embeddings; of a prefix, in each layer."


@dataclass(frozen=True)
class Prompt(Method):
    """Embeddings put before the input's (prompt tuning: Lester et al., EMNLP 2021), and the head of a classifier.

    Learned positions leave so many fewer for the input.
    """

    name: ClassVar[str] = "prompt"
    tokens: int = setting(16, _TOKENS, minimum=1)

    def attach(self, model: nn.Module) -> nn.Module:
        from peft import PromptTuningConfig

        return _attach(model, PromptTuningConfig(task_type=_task(model, self), num_virtual_tokens=self.tokens))


@dataclass(frozen=True)
class PTuning(Method):
    """A prompt that a small network computes while it trains (P-tuning: Liu et al., 2021), and the head.

    A merge to peft writes the computed prompt and leaves the network out. Learned positions leave so many fewer for the
    input.
    """

    name: ClassVar[str] = "ptuning"
    tokens: int = setting(16, _TOKENS, minimum=1)
    encoder: str = setting("mlp", "Kind of the network that computes the prompt.", choices=("mlp", "lstm"))
    hidden: int | None = setting(None, "Width of that network; by default half the model's.", minimum=1)

    def attach(self, model: nn.Module) -> nn.Module:
        from peft import PromptEncoderConfig

        config = PromptEncoderConfig(
            task_type=_task(model, self),
            num_virtual_tokens=self.tokens,
            encoder_reparameterization_type=self.encoder.upper(),
            encoder_hidden_size=self.hidden or max(1, _width(model) // 2),
            encoder_dropout=0.0,
        )
        return _attach(model, config)


@dataclass(frozen=True)
class Prefix(Method):
    """Keys and values put before those of every layer (prefix tuning: Li and Liang, ACL 2021), and the head.

    For a classifier this is what P-tuning v2 does (Liu et al., ACL 2022). A merge to peft writes the result of the
    projection.
    """

    name: ClassVar[str] = "prefix"
    tokens: int = setting(16, _TOKENS, minimum=1)
    projection: bool = setting(False, "Compute the prefix by a small network while it trains.")
    hidden: int | None = setting(None, "Width of that network; by default the model's.", minimum=1)

    def attach(self, model: nn.Module) -> nn.Module:
        from peft import PrefixTuningConfig

        config = PrefixTuningConfig(
            task_type=_task(model, self),
            num_virtual_tokens=self.tokens,
            prefix_projection=self.projection,
            encoder_hidden_size=self.hidden or _width(model),
        )
        return _attach(model, config)


def _attach(model: nn.Module, config: Any) -> nn.Module:
    if config.peft_type != "PREFIX_TUNING":
        config.num_transformer_submodules = 1  # of an encoder and decoder, the encoder alone reads a prompt
    return line_up(attach_peft(model, config, config.peft_type.value.replace("_", " ").lower()))


def line_up(model: nn.Module) -> nn.Module:
    """Let a PeftModel with a prompt give logits for its input alone, and one with a prefix run, in place."""
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
        from edgepeft_export.losses import FIRST_LOGITS

        output[FIRST_LOGITS] = output.logits[:, self.tokens - 1]
        output.logits = output.logits[:, self.tokens :]
        return output


_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
"""peft's name of a model's task, by the end of the name of its class in transformers."""


def _task(model: nn.Module, method: Method) -> str:
    """The kind of model as peft names it.

    Raises:
        MethodError: it is no transformer that reads tokens, or has a task that peft knows no prompts for.
    """
    from torch import nn

    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    kind = next((task for ending, task in _TASKS.items() if type(model).__name__.endswith(ending)), None)
    if kind is None or not isinstance(embeddings, nn.Embedding):
        raise MethodError(
            "method-does-not-fit",
            f"{method.name} needs a transformer that reads tokens; {type(model).__name__} is none it knows.",
            context=f"names end in {', '.join(_TASKS)}",
            hint="choose lora, adapter, bitfit, norm or sift.",
        )
    return kind


def _width(model: nn.Module) -> int:
    return int(model.get_input_embeddings().embedding_dim)
