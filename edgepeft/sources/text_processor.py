"""The tokenizer of a model directory, as a ``tokenizer.json`` that gives the ids transformers gives.

A device reads ``tokenizer.json`` with the package ``tokenizers`` alone, so whatever a directory's other files say
(special tokens, lower case, a vocabulary in an older format) must be in it. Both are run on a few texts: what differs
is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgepeft.sources.errors import SourceError, UnknownPaddingToken, UnusableTokenizer
from edgepeft_runtime.names import some
from edgepeft_runtime.notices import notice

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE = "tokenizer.json"

_VOCABULARIES = (FILE, "vocab.*", "*.model", "*.spm", "*.tiktoken", "*.bpe", "bpe.codes", "merges.txt")
"""Patterns of the files that hold a vocabulary."""

_POSITIONS_AFTER_PADDING = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "mpnet"}
"""Architectures that count positions from the padding's id on, and so have fewer than their table has rows."""

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
        content: of ``tokenizer.json``.
        size: one more than the largest id.
        pad_id: the padding token; ``None`` where there is none.
        longest: tokens of the longest text that the tokenizer is meant for; ``None`` where it does not say.
        typed: whether the second kind of token ids (segments) is anything but zero for a text.
    """

    content: bytes
    size: int
    pad_id: int | None
    longest: int | None
    typed: bool


def read_tokenizer(path: Path) -> Tokenization | None:
    """The tokenizer of a model directory; ``None``, with a notice, where it holds no vocabulary.

    Raises:
        SourceError: it cannot be read, or cannot be expressed as a ``tokenizer.json``.
    """
    if not any(found for pattern in _VOCABULARIES for found in path.glob(pattern)):
        notice(f"{path} has no tokenizer: the bundle takes token ids, not texts.")
        return None
    tokenizer = _loaded(path)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(
            path,
            f"{type(tokenizer).__name__} runs in Python: there is no {FILE} for it.",
            "choose a model with a fast tokenizer, or take the tokenizer's files out and give token ids as .npz.",
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
        longest if 0 < longest < 2**31 else None,
        any(kinds) and "token_type_ids" in tokenizer.model_input_names,
    )


def read_tokenizer_file(path: Path, model: nn.Module | Path) -> dict[str, bytes]:
    """A ``tokenizer.json`` beside a model that came without a directory, for the bundle."""
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
    """Refuse a tokenizer with more tokens than the model has embeddings: such a token fails on the device only."""
    try:
        rows = int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):  # no model of transformers
        return
    if size > rows:
        raise UnusableTokenizer(
            f"The tokenizer of {where} has {size} tokens, and the model embeddings for {rows}.",
            context=f"the ids from {rows} to {size - 1} have no row",
            hint="call model.resize_token_embeddings(len(tokenizer)) and save the model, or take the tokenizer that it "
            "came with.",
        )


def padding_id(path: Path, model: PreTrainedModel, tokenizer: Tokenization | None) -> int:
    """The padding token: the model's, else the tokenizer's, of which the model is told.

    A causal model that classifies finds the end of a text by it; others do not look at what is masked.

    Raises:
        SourceError: it is no token of the vocabulary, or the model needs one and there is none.
    """
    config = model.config.get_text_config()
    pad, size = config.pad_token_id, getattr(config, "vocab_size", None)
    if pad is None and tokenizer is not None and tokenizer.pad_id is not None:
        pad = config.pad_token_id = tokenizer.pad_id
        notice(f"{path}: config.json names no padding token; the tokenizer's ({pad}) is taken.")
    if pad is None and _needs_padding(model):
        raise _bad_padding(path, "the model finds the end of a text by it; config.json and tokenizer name none")
    if pad is not None and size is not None and not 0 <= pad < size:
        raise _bad_padding(path, f"pad_token_id is {pad}, and the vocabulary goes from 0 to {size - 1}")
    return pad or 0


def longest_text(model: PreTrainedModel, pad: int) -> int | None:
    """Tokens of the longest text that the model has positions for; ``None`` where it has no limit."""
    limit = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    if limit and getattr(model.config, "model_type", "") in _POSITIONS_AFTER_PADDING:
        limit -= pad + 1
    return int(limit) if limit else None


def _needs_padding(model: PreTrainedModel) -> bool:
    """Whether a model refuses a batch of two because it does not know what is padding."""
    ids = torch.zeros(2, 2, dtype=torch.int64)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception as error:  # what else is wrong shows when the model is exported
        return isinstance(error, ValueError) and "pad" in str(error)
    return False


def _bad_padding(path: Path, why: str) -> SourceError:
    return UnknownPaddingToken(
        f"The padding token of the model in {path} is not known.",
        context=why,
        hint="set pad_token_id in config.json to a token that no text holds (tokenizer.pad_token = …, and save both).",
    )


def _loaded(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer as transformers has it; a bare ``tokenizer.json`` is taken as it is."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if (path / FILE).is_file() and not (path / "tokenizer_config.json").is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(path / FILE))
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise what they will
        raise _refused(
            path,
            f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}",
            f"install what its format needs (sentencepiece, protobuf, tiktoken), or write {FILE} with "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…).",
        ) from error


def _without_padding(backend: Tokenizer) -> str:
    """The text of ``tokenizer.json``: how long a text may be and how it is padded is for the device to say."""
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    return str(copy.to_str())


def _compared(path: Path, content: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Compare the ids of texts, alone and in pairs; returns the kinds of all tokens of the texts alone."""
    from tokenizers import Tokenizer

    device, kinds = Tokenizer.from_str(content), list[int]()
    for text in _PROBES:
        for pair in (None, "a second text"):
            found, expected = device.encode(text, pair), tokenizer(text, pair, padding=False, truncation=False)
            if found.ids != list(expected["input_ids"]):
                raise _refused(
                    path,
                    f"{text[:40]!r} gives {some([str(number) for number in found.ids], 12)} by {FILE}, "
                    f"and {some([str(number) for number in expected['input_ids']], 12)} by {type(tokenizer).__name__}.",
                    "save the tokenizer anew with save_pretrained, so that its files agree.",
                )
            kinds += expected.get("token_type_ids", []) if pair is None else []
    return kinds


def _refused(path: Path, why: str, hint: str) -> SourceError:
    return UnusableTokenizer(f"The tokenizer of {path} cannot go on a device.", context=why, hint=hint)
