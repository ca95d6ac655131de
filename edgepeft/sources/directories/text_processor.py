"""Convert the tokenizer of a model directory to a ``tokenizer.json`` with the same token ids.

A device reads only ``tokenizer.json``, with the package ``tokenizers``. So it must contain the settings of all other
files (special tokens, lower case, a vocabulary in an older format). Both are run on a few texts, and a difference is
refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgepeft.sources.chat_template import chat_spec, prompt_template
from edgepeft.sources.errors import SourceError, UnknownPaddingToken, UnusableTokenizer
from edgepeft.sources.gguf_tokenizer import gguf_tokenizer
from edgepeft.sources.model_files import ModelFiles
from edgepeft_runtime.bundle.specs import ChatSpec
from edgepeft_runtime.names import some
from edgepeft_runtime.notices import notice

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE = "tokenizer.json"

_VOCABULARIES = (FILE, "vocab.*", "*.model", "*.spm", "*.tiktoken", "*.bpe", "bpe.codes", "merges.txt")
"""Patterns of the files that contain a vocabulary."""

_POSITIONS_AFTER_PADDING = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "mpnet"}
"""Architectures that count positions from the padding's id on, so they have fewer than their table has rows."""

_PROBES = (
    "",
    "Hello, World!  It's 2 o'clock\t— isn't it?\n",
    "naïve café 'déjà vu' ﬁne",
    "nai\u0308ve cafe\u0301",
    "日本語のテキスト と 한국어 и русский العربية",
    "👩‍👩‍👧 🚀 \u200b\ufeff x\u00a0y",
    "<s> [CLS] [SEP] </s> <|endoftext|> <pad> [MASK]",
    "word " * 300,
)


@dataclass(frozen=True)
class Tokenization:
    """A tokenizer for devices.

    Attributes:
        content: Content of ``tokenizer.json``.
        size: The largest id plus one.
        pad_id: The padding token; ``None`` if there is none.
        mask_id: The token that stands for a masked one; ``None`` if there is none.
        longest: Largest number of tokens of a text; ``None`` if the tokenizer does not specify it.
        typed: Whether a single text has segments (token type ids) other than zero.
        template: Returns the chat template as a template of prompts, with a notice; ``None`` if there is none.
        chat: The chat template itself.
    """

    content: bytes
    size: int
    pad_id: int | None
    mask_id: int | None
    longest: int | None
    typed: bool
    template: Callable[[], str | None]
    chat: ChatSpec | None


def read_tokenizer(files: ModelFiles) -> Tokenization | None:
    """Read the tokenizer of a model; ``None``, with a notice, if there is no vocabulary.

    A ``.gguf`` file contains one; a vocabulary beside the file comes first.

    Raises:
        SourceError: The tokenizer cannot be read, or cannot be expressed as a ``tokenizer.json``.
    """
    path, beside = str(files), any(file for pattern in _VOCABULARIES for file in files.folder.glob(pattern))
    if not beside and files.gguf is None:
        notice(f"{path} has no tokenizer: the bundle accepts token ids, not texts.")
        return None
    tokenizer = _loaded(files, beside)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(
            path,
            f"{type(tokenizer).__name__} runs in Python: there is no {FILE} for it.",
            "choose a model with a fast tokenizer, or remove the tokenizer's files and give token ids as .npz.",
        )
    content = _without_padding(backend)
    kinds = _compared(path, content, tokenizer)
    if tokenizer.truncation_side != "right":
        notice(f"{path}: long texts are cut at their end; the tokenizer's truncation_side is not used.")
    longest = int(getattr(tokenizer, "model_max_length", 0) or 0)
    return Tokenization(
        content.encode(),
        max(tokenizer.get_vocab().values(), default=-1) + 1,
        tokenizer.pad_token_id,
        tokenizer.mask_token_id,
        longest if 0 < longest < 2**31 else None,
        any(kinds) and "token_type_ids" in tokenizer.model_input_names,
        partial(prompt_template, tokenizer, path),
        chat_spec(tokenizer),
    )


def read_tokenizer_file(path: Path, model: nn.Module | Path) -> dict[str, bytes]:
    """Read a ``tokenizer.json`` for the bundle of a model without a directory; return it by its name."""
    from tokenizers import Tokenizer

    try:
        content = path.read_bytes()
        vocabulary = Tokenizer.from_str(content.decode("utf-8")).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises the bare class
        raise UnusableTokenizer(
            f"The tokenizer {path} cannot be read.",
            context=(str(error).strip().splitlines() or [type(error).__name__])[0],
            hint=f"give the path of a {FILE}, as save_pretrained writes it.",
        ) from error
    if isinstance(model, nn.Module):
        check_embedding(max(vocabulary.values(), default=-1) + 1, model, str(path))
    return {FILE: content}


def check_embedding(size: int, model: nn.Module, where: str) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings, which would fail only on the device."""
    try:
        rows = int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):  # not a model of transformers
        return
    if size > rows:
        raise UnusableTokenizer(
            f"The tokenizer of {where} has {size} tokens, but the model has embeddings for {rows}.",
            context=f"the ids from {rows} to {size - 1} have no row",
            hint="call model.resize_token_embeddings(len(tokenizer)) and save the model, or use its own tokenizer.",
        )


def padding_id(path: str, model: PreTrainedModel, tokenizer: Tokenization | None) -> int:
    """Return the model's padding token, or else the tokenizer's, which is then set in the model's configuration.

    A causal model that classifies finds the end of a text by it. Others ignore masked tokens.

    Raises:
        SourceError: It is not a token of the vocabulary, or the model needs one and there is none.
    """
    config = model.config.get_text_config()
    pad, size = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if pad is None and tokenizer is not None and tokenizer.pad_id is not None:
        pad = config.pad_token_id = tokenizer.pad_id
        notice(f"{path}: config.json names no padding token; the tokenizer's ({pad}) is used.")
    if pad is None and _needs_padding(model):
        raise _bad_padding(path, "the model finds the end of a text by it; config.json and tokenizer name none")
    if pad is not None and size is not None and not 0 <= pad < size:
        raise _bad_padding(path, f"pad_token_id is {pad}, and the vocabulary has ids from 0 to {size - 1}")
    return pad or 0


def longest_text(model: PreTrainedModel, pad: int) -> int | None:
    """Return the largest number of tokens for which the model has positions; ``None`` if it has no limit."""
    names = ("max_position_embeddings", "n_positions", "max_target_positions")
    configs = (model.config, model.config.get_text_config())
    limit = next((found for config in configs for name in names if (found := getattr(config, name, None))), None)
    if limit is not None and limit <= 0:
        return None  # XLNet's -1
    if limit and getattr(model.config, "model_type", "") in _POSITIONS_AFTER_PADDING:
        limit -= pad + 1
    return int(limit) if limit else None


def _needs_padding(model: PreTrainedModel) -> bool:
    """Whether a model refuses a batch of two because it does not know the padding token."""
    ids = torch.zeros(2, 2, dtype=torch.int64)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception as error:  # other problems appear when the model is exported
        return isinstance(error, ValueError) and "pad" in str(error)
    return False


def _bad_padding(path: str, why: str) -> SourceError:
    return UnknownPaddingToken(
        f"The padding token of the model in {path} is not known.",
        context=why,
        hint="set pad_token_id in config.json and tokenizer.pad_token to a token that no text contains, and save both.",
    )


def _loaded(files: ModelFiles, beside: bool) -> PreTrainedTokenizerBase:
    """Load the tokenizer with transformers; a ``tokenizer.json`` without a configuration is loaded directly."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = files.folder
    try:
        if not beside:
            return gguf_tokenizer(files)
        if (folder / FILE).is_file() and not (folder / "tokenizer_config.json").is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(folder / FILE))
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise any exception
        raise _refused(
            str(files),
            f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}",
            f"install what its format needs (sentencepiece, protobuf, tiktoken), or write {FILE} with "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…).",
        ) from error


def _without_padding(backend: Tokenizer) -> str:
    """Return the text of ``tokenizer.json`` without padding and truncation, which the device sets."""
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    return str(copy.to_str())


def _compared(path: str, content: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Compare the ids of texts, alone and in pairs. Return the segments of all tokens of the single texts."""
    from tokenizers import Tokenizer

    device, kinds = Tokenizer.from_str(content), list[int]()
    for text in _PROBES:
        for pair in (None, "a second text"):
            actual, expected = device.encode(text, pair), tokenizer(text, pair, padding=False, truncation=False)
            if actual.ids != list(expected["input_ids"]):
                raise _refused(
                    path,
                    f"{text[:40]!r} gives {some([str(id_) for id_ in actual.ids], 12)} by {FILE}, "
                    f"and {some([str(id_) for id_ in expected['input_ids']], 12)} by {type(tokenizer).__name__}.",
                    "save the tokenizer again with save_pretrained, so that its files agree.",
                )
            kinds += expected.get("token_type_ids", []) if pair is None else []
    return kinds


def _refused(path: str, why: str, hint: str) -> SourceError:
    return UnusableTokenizer(f"The tokenizer of {path} cannot run on a device.", context=why, hint=hint)
