"""Read the chat template of a tokenizer, and render it to a template of prompts, which needs no Jinja."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepeft_runtime.bundle.specs import ChatSpec
from edgepeft_runtime.notices import notice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROMPT = "{prompt}"


def prompt_template(tokenizer: PreTrainedTokenizerBase, where: str) -> str | None:
    """Return the text of one question with ``{prompt}`` in it, up to the answer; ``None`` without a chat template.

    A token with which the tokenizer begins each text by itself is left out. A line says that the template is used,
    or why it is not.

    Args:
        tokenizer: The model's tokenizer.
        where: Name of the source, for the notice.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    question = [{"role": "user", "content": _PROMPT}]
    try:
        rendered = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja2, and whatever the template raises itself
        rendered, reason = "", f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    else:
        reason = "it does not contain the question exactly once"
    text = str(rendered)
    if text.count(_PROMPT) != 1:
        notice(f"{where}: the chat template is not used: {reason}.")
        return None
    dated = "; the date of today stays in it" if "strftime_now" in str(tokenizer.chat_template) else ""
    notice(f"{where}: prompts go through the model's chat template{dated}.")
    return text.removeprefix(_first(tokenizer))


def chat_spec(tokenizer: PreTrainedTokenizerBase) -> ChatSpec | None:
    """Return the chat template with the special tokens that it may name; ``None`` if there is none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        template = tokenizer.get_chat_template()
    except ValueError:  # several templates, none of which is the default
        return None
    tokens = {name: str(text) for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
    return ChatSpec(str(template), tokens)


def _first(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the special token with which the tokenizer begins each text; empty if it adds none."""
    bos = tokenizer.bos_token_id
    return str(tokenizer.bos_token) if bos is not None and tokenizer("a").input_ids[:1] == [bos] else ""
