"""Prompts and answers of causal language models: templates, tokens, and the tokens that are learned.

The loss is on the answer alone. The template a model is tuned with need not be the one it is used with: a safety prompt
that is left out of the tuning and put in for use keeps more of what alignment gave ("pure tuning, safe testing": Lyu et
al., NeurIPS 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.errors import BadTemplate, NotText
from edgepeft.data.table import Table
from edgepeft.data.tokenizer import tokenizer_of
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.errors import DataError
from edgepeft_runtime.files.strict_json import is_text
from edgepeft_runtime.shown import quoted

PLACE = "{prompt}"
"""Where the prompt goes in a template."""


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
    """Turns prompts and answers into token ids.

    Args:
        bundle: carries the tokenizer, and a template perhaps.
        template: text with ``{prompt}`` in it; ``None`` takes the bundle's own, or the bare prompt.

    Raises:
        DataError: the bundle takes no text, or the template has no place for the prompt.
    """

    def __init__(self, bundle: Bundle, template: str | None = None) -> None:
        self._template = template_of(bundle.manifest, template)
        self._tokenizer = tokenizer_of(bundle)
        generation = bundle.manifest.generation
        self._end = generation.end[:1] if generation is not None else ()

    def text(self, prompt: str) -> str:
        """The prompt in its template."""
        return _checked(self._template.replace(PLACE, prompt))

    def prompt(self, prompt: str) -> list[int]:
        """Token ids of the prompt in its template; without what the tokenizer closes a text with."""
        encoding = self._tokenizer.encode(self.text(prompt))
        ids, special = list(encoding.ids), list(encoding.special_tokens_mask)
        while ids and special[len(ids) - 1]:
            if all(special[: len(ids)]):
                break  # an empty prompt still has what a text begins with
            ids.pop()
        return ids

    def answer(self, answer: str) -> list[int]:
        """Token ids of an answer, and the end token where the model has one."""
        return [*self._tokenizer.encode(_checked(answer), add_special_tokens=False).ids, *self._end]

    def decoded(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, without the end token."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def first(self, prompt: str) -> int:
        """How many tokens at the beginning are the tokenizer's own: these stay when a prompt is cut."""
        special = self._tokenizer.encode(self.text(prompt)).special_tokens_mask
        return next((place for place, own in enumerate(special) if not own), 0)


def _checked(text: str) -> str:
    """The text, if it is one that a tokenizer takes: bytes of a command line that are not UTF-8 give half pairs."""
    if is_text(text):
        return text
    raise NotText(
        "The text holds half of a surrogate pair.",
        context=f"found {quoted(text)}",
        hint="give it in UTF-8.",
    )


def template_of(manifest: Manifest, template: str | None) -> str:
    """The template to use, checked."""
    chosen = template if template is not None else (manifest.text.template if manifest.text is not None else None)
    if chosen is None:
        return PLACE
    if chosen.count(PLACE) != 1:
        raise BadTemplate(
            "The template must say once where the prompt goes.",
            context=f"found {quoted(chosen)}",
            hint=f"write {PLACE} in its place: '### Question:\\n{PLACE}\\n### Answer:\\n'.",
        )
    return chosen


def pairs(table: Table, prompter: Prompter, longest: int) -> Iterator[Pair]:
    """Prompts (the table's texts) with their answers (its labels), cut on the left to ``longest`` tokens.

    Raises:
        DataError: an answer is no text, is empty, or does not fit; by file and line.
    """
    for row, (prompt, answer) in enumerate(zip(table.texts, table.labels or (), strict=True)):
        yield _pair(prompt, answer, prompter, longest, partial(table.error, row))


def _pair(
    prompt: str, answer: object, prompter: Prompter, longest: int, error: Callable[[str, str, str], DataError]
) -> Pair:
    if not isinstance(answer, str) or not answer:
        raise error("The answer is not text.", f"expected a string, found {quoted(answer)}", "write it as a string.")
    before, after = prompter.prompt(prompt), prompter.answer(answer)
    if len(after) + 1 > longest:
        facts = f"it has {len(after)} tokens with its end; {longest} are the most, one of them for the prompt"
        raise error("The answer does not fit.", facts, "shorten it, or prepare the bundle with a greater max_length.")
    if len(before) + len(after) < 2:
        raise error("The text is too short.", "prompt and answer are one token", "leave the line out.")
    tokens = len(before) + len(after)
    excess = tokens - longest
    if excess > 0:
        kept = min(prompter.first(prompt), longest - len(after))
        before = [*before[:kept], *before[kept + excess :]]
    return Pair(np.asarray([*before, *after], np.int32), len(after), tokens)
