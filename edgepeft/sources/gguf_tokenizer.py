"""Read the tokenizer of a ``.gguf`` file with transformers, without the tokens that transformers adds to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgepeft.sources.model_files import ModelFiles

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


def gguf_tokenizer(files: ModelFiles) -> PreTrainedTokenizerBase:
    """Return the tokenizer. AutoTokenizer would read the configuration once more, which takes seconds.

    transformers builds it as a tokenizer of GPT-2 or Llama, which adds its usual special tokens (``<|endoftext|>``)
    where the file has none of that name. The model has no embeddings for them, so they are removed.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(files.folder, local_files_only=True, **files.arguments)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    size = len(content["model"]["vocab"])  # special tokens of the file are in it too
    own = [token for token in content["added_tokens"] if token["id"] < size]
    if len(own) == len(content["added_tokens"]):
        return tokenizer
    names = {token["content"] for token in own}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content | {"added_tokens": own})),
        chat_template=tokenizer.chat_template,
        **{name: getattr(tokenizer, name) for name in _NAMED if getattr(tokenizer, name) in names},
    )
