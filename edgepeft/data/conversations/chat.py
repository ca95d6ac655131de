"""Convert conversations to token ids by the model's own chat template, and mark the tokens of the assistant's turns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.conversations.jinja import Messages, RenderingFailed, compiled
from edgepeft.data.errors import NoChatTemplate
from edgepeft.data.tokenizer import tokenizer_of
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.files.strict_json import is_text
from edgepeft_runtime.notices import notice
from edgepeft_runtime.shown import quoted

ASSISTANT = "assistant"
"""The role whose turns are learned."""


class BadConversation(Exception):
    """A conversation that cannot be rendered. Callers, who know the row, convert this to an error."""


@dataclass(frozen=True)
class Turns:
    """Token ids of a conversation.

    Attributes:
        ids: int32 ``[tokens]``.
        learned: Whether a token belongs to a turn that is learned, bool ``[tokens]``.
        unmarked: Number of the assistant's turns that the template renders differently within the whole conversation
            than at its end, so that nothing of them is learned.
    """

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    unmarked: int

    def cut(self, longest: int, first: int | None) -> Turns:
        """Return at most ``longest`` tokens: the last ones and, if the text begins with ``first``, that token."""
        if len(self.ids) <= longest:
            return self
        own = int(first is not None and longest > 1 and int(self.ids[0]) == first)
        keep = np.r_[0:own, len(self.ids) - longest + own : len(self.ids)]
        return Turns(self.ids[keep], self.learned[keep], self.unmarked)


class Chat:
    """Renders and tokenizes conversations.

    Args:
        bundle: The bundle, with a tokenizer and a chat template.

    Raises:
        DataError: It has none, or the template is not valid.
    """

    def __init__(self, bundle: Bundle) -> None:
        spec = bundle.manifest.text
        if spec is None or spec.chat is None:
            raise NoChatTemplate(
                "The bundle has no chat template, which conversations need.",
                context=f"{bundle.path}: text.chat",
                hint="prepare it from a model whose tokenizer has one, or give the columns prompt and answer.",
            )
        if "strftime_now" in spec.chat.template:
            notice(f"{bundle.path}: the chat template writes the date of today into each conversation.")
        self._tokenizer = tokenizer_of(bundle)
        self._render = partial(compiled(spec.chat.template), **spec.chat.tokens, tools=None, documents=None)
        self.first = self._tokenizer.token_to_id(spec.chat.tokens.get("bos_token", ""))
        """The token with which each text begins; ``None`` if there is none."""
        generation = bundle.manifest.generation
        self._end = frozenset(generation.end if generation is not None else ())

    def text(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        """Return a conversation as text; ``add_generation_prompt`` appends the beginning of the assistant's turn.

        Raises:
            BadConversation: The messages are none, or the template refuses them.
        """
        try:
            text = self._render(messages=_plain(messages), add_generation_prompt=add_generation_prompt)
        except RenderingFailed as failure:
            raise BadConversation(f"the chat template refuses it: {failure}") from failure
        if not is_text(text):
            raise BadConversation(f"a text contains half of a surrogate pair: {quoted(text)}")
        return text

    def prompt(self, messages: Messages) -> list[int]:
        """Return the token ids after which the assistant answers."""
        text = self.text(messages, add_generation_prompt=True)
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def turns(self, messages: Messages, first: int = 0) -> Turns:
        """Tokenize a conversation, and mark the assistant's turns from message ``first`` on.

        A turn is what the template adds to the messages before it and their generation prompt. It ends with the first
        token that ends a text, since a model stops there. A token is part of a turn if any of its characters is, as in
        the mask of ``apply_chat_template(return_assistant_tokens_mask=True)``.

        Raises:
            BadConversation: The messages are none, or the template refuses them.
        """
        whole = self.text(messages)
        encoding = self._tokenizer.encode(whole, add_special_tokens=False)
        ids = np.asarray(encoding.ids, np.int32)
        learned, unmarked = np.zeros(len(ids), np.bool_), 0
        offsets = np.asarray(encoding.offsets, np.int64).reshape(-1, 2)
        for index in range(first, len(messages)):
            if messages[index].get("role") != ASSISTANT:
                continue
            span = self._span(messages, index, whole)
            if span is None:
                unmarked += 1
                continue
            tokens = np.flatnonzero((offsets[:, 1] > span[0]) & (offsets[:, 0] < span[1]))
            learned[self._until_end(ids, tokens)] = True
        return Turns(ids, learned, unmarked)

    def _span(self, messages: Messages, index: int, whole: str) -> tuple[int, int] | None:
        """Return where the turn is in the text, in characters; ``None`` if the text differs before it."""
        before = self.text(messages[:index], add_generation_prompt=True) if index else ""
        if not whole.startswith(before):
            before = self.text(messages[:index]) if index else ""  # a template whose turns need no generation prompt
        after = self.text(messages[: index + 1])
        stop = _common(after, whole)
        return (len(before), stop) if whole.startswith(before) and stop > len(before) else None

    def _until_end(self, ids: NDArray[np.int32], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the tokens of a turn up to the first one that ends a text."""
        ends = [row for row, token in enumerate(tokens) if int(ids[token]) in self._end]
        return tokens[: ends[0] + 1] if ends else tokens


def _common(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _plain(messages: Messages) -> object:
    """Return the messages as plain JSON values, the only ones that a template may see."""
    try:
        plain = json.loads(json.dumps(list(messages)))
    except (TypeError, ValueError, RecursionError) as failure:
        raise BadConversation(f"its messages are not JSON: {failure}") from None
    if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in plain):
        raise BadConversation(f"each message needs a role: {quoted(plain)}")
    return plain
