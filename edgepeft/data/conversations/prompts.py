"""Convert prompts and answers of causal language models to token ids, with templates.

Only the tokens of the answer are learned. A model may be tuned with one template and used with another: a safety prompt
that is used only for inference preserves more of the alignment ("pure tuning, safe testing": Lyu et al., NeurIPS 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.errors import BadTemplate, NotText, WrongColumns
from edgepeft.data.table import Table
from edgepeft.data.tokenizer import tokenizer_of
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.errors import DataError
from edgepeft_runtime.files.strict_json import is_text
from edgepeft_runtime.shown import quoted

PLACEHOLDER = "{prompt}"
"""The placeholder of the prompt in a template."""


@dataclass(frozen=True)
class Pair:
    """Token ids of a prompt with its answer.

    Attributes:
        ids: int32 ``[tokens]``.
        answer: Number of tokens at the end that belong to the answer.
        tokens: Number of tokens before the prompt was cut.
    """

    ids: NDArray[np.int32]
    answer: int
    tokens: int


class Prompter:
    """Converts prompts and answers to token ids.

    Args:
        bundle: The bundle with the tokenizer, and possibly a template.
        template: A text with ``{prompt}`` in it; ``None`` means the bundle's own, or else the bare prompt.

    Raises:
        DataError: The bundle does not accept text, or the template does not contain the placeholder exactly once.
    """

    def __init__(self, bundle: Bundle, template: str | None = None) -> None:
        self._template = template_of(bundle.manifest, template)
        self._tokenizer = tokenizer_of(bundle)
        generation = bundle.manifest.generation
        self._end = generation.end[:1] if generation is not None else ()

    def text(self, prompt: str) -> str:
        """Return the prompt in its template."""
        return _checked(self._template.replace(PLACEHOLDER, prompt))

    def prompt(self, prompt: str) -> list[int]:
        """Return the ids of the prompt in its template, without the special tokens with which a text ends."""
        encoding = self._tokenizer.encode(self.text(prompt))
        ids, special = list(encoding.ids), list(encoding.special_tokens_mask)
        while ids and special[len(ids) - 1]:
            if all(special[: len(ids)]):
                break  # an empty prompt keeps the special tokens with which a text begins
            ids.pop()
        return ids

    def answer(self, answer: str) -> list[int]:
        """Return the ids of an answer, and the end token if the model has one."""
        return [*self._tokenizer.encode(_checked(answer), add_special_tokens=False).ids, *self._end]

    def decoded(self, ids: Sequence[int]) -> str:
        """Return the text of generated tokens, without the end token."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def first(self, prompt: str) -> int:
        """Return how many special tokens a prompt begins with. They remain when it is cut."""
        special = self._tokenizer.encode(self.text(prompt)).special_tokens_mask
        return next((index for index, own in enumerate(special) if not own), 0)


def _checked(text: str) -> str:
    """Return the text if a tokenizer accepts it. Arguments of a command that are not UTF-8 contain half pairs."""
    if is_text(text):
        return text
    raise NotText(
        "The text contains half of a surrogate pair.",
        context=f"found {quoted(text)}",
        hint="give it in UTF-8.",
    )


def template_of(manifest: Manifest, template: str | None) -> str:
    """Return the given template or the bundle's, and check it."""
    chosen = template if template is not None else (manifest.text.template if manifest.text is not None else None)
    if chosen is None:
        return PLACEHOLDER
    if chosen.count(PLACEHOLDER) != 1:
        raise BadTemplate(
            "The template must contain the placeholder of the prompt exactly once.",
            context=f"found {quoted(chosen)}",
            hint=f"write {PLACEHOLDER} where the prompt belongs: '### Question:\\n{PLACEHOLDER}\\n### Answer:\\n'.",
        )
    return chosen


def pairs(table: Table, prompter: Prompter, longest: int) -> Iterator[Pair]:
    """Yield prompts (the table's texts) with their answers (its labels), cut on the left to ``longest`` tokens.

    Raises:
        DataError: An answer is not text, is empty, or does not fit. The message names the file and the line.
    """
    for row, (prompt, answer) in enumerate(zip(single(table), table.labels or (), strict=True)):
        yield _pair(prompt, answer, prompter, longest, partial(table.error, row))


def single(table: Table) -> list[str]:
    """Return the texts of a table that has no pairs; raises ``DataError`` for others."""
    texts = [text for text in table.texts if isinstance(text, str)]
    if len(texts) < len(table.texts):
        raise WrongColumns(
            f"{table.source}: A causal language model reads one text per example, not a pair.",
            context=None,
            hint="name one text column, or give the columns prompt and answer.",
        )
    return texts


def _pair(
    prompt: str, answer: object, prompter: Prompter, longest: int, error: Callable[[str, str, str], DataError]
) -> Pair:
    if not isinstance(answer, str):
        raise error("The answer is not text.", f"expected a string, found {quoted(answer)}", "write it as a string.")
    if not answer:
        raise error("The answer is empty.", "there is nothing to learn", "write an answer, or leave the row out.")
    before, after = prompter.prompt(prompt), prompter.answer(answer)
    if len(after) + 1 > longest:
        facts = f"it has {len(after)} tokens with its end; at most {longest} fit, one of them for the prompt"
        raise error("The answer does not fit.", facts, "shorten it, or prepare the bundle with a greater max_length.")
    if len(before) + len(after) < 2:
        raise error("The text is too short.", "prompt and answer have one token in total", "leave the line out.")
    tokens = len(before) + len(after)
    excess = tokens - longest
    if excess > 0:
        first = min(prompter.first(prompt), longest - len(after))
        before = [*before[:first], *before[first + excess :]]
    return Pair(np.asarray([*before, *after], np.int32), len(after), tokens)
