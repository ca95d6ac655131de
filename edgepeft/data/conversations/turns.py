"""Load conversations, of which a causal language model learns the assistant's turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgepeft.data.conversations.chat import ASSISTANT, BadConversation, Chat, Turns
from edgepeft.data.conversations.jinja import Messages
from edgepeft.data.labels import only_label
from edgepeft.data.records import Records
from edgepeft.data.text import Texts, ignored_index, longest_of, text_spec_of, texts_of
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import DataError, NoData
from edgepeft_runtime.notices import notice
from edgepeft_runtime.shown import quoted

MESSAGES = "messages"
"""The column of conversations."""


@dataclass(frozen=True)
class Conversation:
    """A row of data.

    Attributes:
        number: Its number in the data.
        messages: All messages.
        first: Index of the first message whose turn may be learned: 0, or that of the first one of an answer.
    """

    number: int
    messages: Messages
    first: int


def conversations(records: Records, columns: Sequence[str]) -> Iterator[Conversation]:
    """Yield the rows: ``messages``, or a prompt and its answer, each a list of messages.

    Raises:
        DataError: A value is no list of messages.
    """
    for number, cells in records.rows(columns):
        parts = [_messages(records, number, name, cell) for name, cell in zip(columns, cells, strict=True)]
        yield Conversation(number, [message for part in parts for message in part], len(parts[0]) if parts[1:] else 0)


def conversed(records: Records, columns: Sequence[str], bundle: Bundle, *, labelled: bool) -> Texts:
    """Tokenize conversations; too long ones are cut on the left.

    Args:
        records: The rows.
        columns: ``messages``, or the columns of prompt and answer.
        bundle: The bundle of a causal language model, with a tokenizer and a chat template.
        labelled: Whether the tokens of the assistant's turns are labels.

    Raises:
        DataError: The bundle has no chat template; a row is no conversation, the template refuses it, or nothing of it
            would be learned.
    """
    manifest, chat = bundle.manifest, Chat(bundle)
    longest = longest_of(manifest, text_spec_of(manifest))
    rows, lengths, unmarked = list[Turns](), list[int](), 0
    for row in conversations(records, columns):
        try:
            turns = chat.turns(row.messages, row.first)
        except BadConversation as failure:
            raise _error(records, row.number, "The conversation cannot be rendered.", str(failure)) from failure
        lengths.append(len(turns.ids))
        unmarked += turns.unmarked
        cut = turns.cut(longest, chat.first)
        if labelled and not cut.learned[1:].any():
            raise _error(records, row.number, "Nothing of the conversation is learned.", _why(row, turns, longest))
        rows.append(cut)
    if not rows:
        raise NoData(f"{records.source} contains no examples.", context=None, hint="give at least one conversation.")
    _notice(records, lengths, longest, unmarked)
    ids = [row.ids for row in rows]
    if not labelled:
        return texts_of(ids, manifest)
    ignored = ignored_index(only_label(manifest))
    return texts_of(
        ids, manifest, token_labels=[np.where(row.learned, row.ids, ignored).astype(np.int32) for row in rows]
    )


def _messages(records: Records, number: int, name: str, cell: object) -> Messages:
    if isinstance(cell, list | tuple) and cell and all(isinstance(message, Mapping) for message in cell):
        return list(cell)
    found = f"{name}: expected a list of messages, found {quoted(cell)}"
    raise _error(records, number, "The conversation is not a list of messages.", found)


def _error(records: Records, number: int, message: str, context: str) -> DataError:
    hint = 'write [{"role": "user", "content": …}, {"role": "assistant", "content": …}, …], or leave the row out.'
    return records.error(number, message, context, hint)


def _why(row: Conversation, turns: Turns, longest: int) -> str:
    if not any(message.get("role") == ASSISTANT for message in row.messages[row.first :]):
        return f"no message has the role {ASSISTANT!r}"
    if turns.unmarked and not turns.learned.any():
        return "the chat template renders the assistant's turns differently when others follow"
    return f"it has {len(turns.ids)} tokens, and of the last {longest} none is the assistant's"


def _notice(records: Records, lengths: Sequence[int], longest: int, unmarked: int) -> None:
    cut = [length for length in lengths if length > longest]
    if cut:
        notice(
            f"{records.source}: {len(cut)} of {len(lengths)} conversations are cut on the left to {longest} tokens; "
            f"the longest has {max(cut)}."
        )
    if unmarked:
        notice(
            f"{records.source}: {unmarked} of the assistant's turns are not learned: the chat template renders them "
            "differently when others follow."
        )
