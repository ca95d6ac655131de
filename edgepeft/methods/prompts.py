"""Prompts and prefixes, which a transformer reads before its input. Attached by Hugging Face ``peft``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgepeft.methods.base import Method
from edgepeft.methods.errors import MethodDoesNotFit
from edgepeft.methods.support.peft_methods import attach_peft
from edgepeft_runtime.settings import setting

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

_TOKENS = "Number of trained embeddings; for a prefix, in each layer."


@dataclass(frozen=True)
class Prompt(Method):
    """Embeddings put before the input's (prompt tuning: Lester et al., EMNLP 2021), and the head of a classifier.

    The tokens of the prompt occupy learned positions, so the longest input is shorter.
    """

    name: ClassVar[str] = "prompt"
    tokens: int = setting(16, _TOKENS, minimum=1)

    def attach(self, model: nn.Module) -> nn.Module:
        from peft import PromptTuningConfig

        return _attach(model, PromptTuningConfig(task_type=_task(model, self), num_virtual_tokens=self.tokens))


@dataclass(frozen=True)
class PTuning(Method):
    """A prompt that a small network computes during training (P-tuning: Liu et al., 2021), and the head.

    A merge to peft writes the computed prompt without the network. The tokens of the prompt occupy learned positions,
    so the longest input is shorter.
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

    For a classifier this is P-tuning v2 (Liu et al., ACL 2022). A merge to peft writes the result of the
    projection.
    """

    name: ClassVar[str] = "prefix"
    tokens: int = setting(16, _TOKENS, minimum=1)
    projection: bool = setting(False, "Compute the prefix by a small network during training.")
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


def _attach(model: nn.Module, config: PeftConfig) -> nn.Module:
    from edgepeft.methods.support.prompt_outputs import align_outputs

    if config.peft_type != "PREFIX_TUNING":
        config.num_transformer_submodules = 1  # in an encoder-decoder model, only the encoder reads a prompt
    return align_outputs(attach_peft(model, config, config.peft_type.value.replace("_", " ").lower()))


_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
"""peft's name of a model's task, by the end of the name of its class in transformers."""


def _task(model: nn.Module, method: Method) -> str:
    """Return peft's name of a model's task.

    Raises:
        MethodError: The model is not a transformer that reads tokens, or peft has no prompts for its task.
    """
    from torch import nn

    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    kind = next((task for ending, task in _TASKS.items() if type(model).__name__.endswith(ending)), None)
    if kind is None or not isinstance(embeddings, nn.Embedding):
        raise MethodDoesNotFit(
            f"{method.name} needs a transformer that reads tokens, and {type(model).__name__} is not supported.",
            context=f"names of supported classes end in {', '.join(_TASKS)}",
            hint="choose lora, adapter, bitfit, norm or sift.",
        )
    return kind


def _width(model: nn.Module) -> int:
    return int(model.get_input_embeddings().embedding_dim)
