"""Small configurations: every size that a class of transformers has is set to a small one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SMALL: dict[str, Any] = {
    # widths
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "d_embed", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("embedding_size",), 32),
    **dict.fromkeys(("d_kv", "head_dim", "kv_channels"), 8),
    **dict.fromkeys(
        ("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "d_inner"), 40
    ),
    "n_inner": 40,
    # depths
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "num_layers",
            "encoder_layers",
            "decoder_layers",
            "n_layer",
            "n_layers",
            "num_decoder_layers",
        ),
        2,
    ),
    # heads
    **dict.fromkeys(
        ("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads"),
        4,
    ),
    "num_key_value_heads": 2,
    "rotary_dim": 4,
    # vocabulary and positions
    "vocab_size": 101,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "max_source_positions": 64,
    "max_target_positions": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "decoder_start_token_id": 1,
    # images
    "image_size": 32,
    "patch_size": 8,
    # experts
    "num_local_experts": 4,
    "num_experts": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_labels": 3,
}


@dataclass(frozen=True)
class Case:
    """A class with its configuration.

    Attributes:
        name: The class.
        task: The task that is named where the configuration does not name it.
        sizes: Settings of the configuration instead of small ones.
        without: Names of small settings that are left at their defaults.
        method: Method of fine-tuning.
        processor: Content of ``preprocessor_config.json``.
        fixed: Number of tokens of every text, for models that run for one length alone.
        ends: Whether each text ends with the token for that, by which the model finds its scores.
    """

    name: str
    sizes: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    task: str | None = None
    method: str = "lora"
    processor: dict[str, Any] | None = None
    fixed: int | None = None
    ends: bool = False


def config_of(case: Case) -> Any:
    """Return the configuration of a case."""
    import transformers

    kind = getattr(transformers, case.name).config_class
    default = kind()
    classes = () if "QuestionAnswering" in case.name else ("num_labels",)
    known = {
        name: value
        for name, value in SMALL.items()
        if name not in case.without and (name in classes or (name != "num_labels" and hasattr(default, name)))
    }
    return kind(**{**known, **case.sizes})
