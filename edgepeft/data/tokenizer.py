"""Load the tokenizer of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepeft.data.errors import BadTokenizer, NoTokenizer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import MissingExtra

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"


def tokenizer_of(bundle: Bundle) -> Tokenizer:
    """Return a ``tokenizers.Tokenizer`` that neither pads nor truncates.

    Raises:
        DataError: The bundle has none, it is damaged, or the package ``tokenizers`` is missing.
    """
    if TOKENIZER not in bundle.manifest.files:
        raise NoTokenizer(
            "The bundle has no tokenizer.",
            context=f"{bundle.path} has no {TOKENIZER}",
            hint="prepare it from a model directory with a tokenizer.json, or give the data as .npz with token ids.",
        )
    return read_tokenizer(bundle.file(TOKENIZER))


def read_tokenizer(path: Path) -> Tokenizer:
    """See ``tokenizer_of``."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtra(
            "Reading text needs the package tokenizers, which is not installed.",
            context=None,
            hint="pip install 'edgepeft[text]'",
        ) from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as failure:  # tokenizers raises the bare class
        raise BadTokenizer(f"Cannot read {path}.", context=str(failure), hint="prepare the bundle again.") from failure
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
