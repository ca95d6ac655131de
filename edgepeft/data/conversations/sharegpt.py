"""Rows of ``conversations``, as ShareGPT's data has them: turns ``from`` somebody with a ``value``, as messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from edgepeft.data.conversations.chat import ASSISTANT
from edgepeft.data.conversations.turns import MESSAGES
from edgepeft.data.records import Records, Row
from edgepeft_runtime.errors import DataError

CONVERSATIONS = "conversations"
_ROLES = {"human": "user", "gpt": ASSISTANT, "chatgpt": ASSISTANT, "bing": ASSISTANT, "bard": ASSISTANT}
"""Names of speakers that are roles of other names; those of others are roles already (``system``, ``user``, ...)."""


class SharedConversations:
    """Rows with the column ``messages``.

    Args:
        records: Rows with the column ``conversations``.
    """

    def __init__(self, records: Records) -> None:
        self.source, self.columns = records.source, [MESSAGES]
        self._records = records

    def rows(self, wanted: Sequence[str], fields: dict[str, None] | None = None) -> Iterator[Row]:
        """See ``Records``."""
        for number, (turns,) in self._records.rows([CONVERSATIONS] * len(wanted), fields):
            yield number, [[_message(turn) for turn in turns] if isinstance(turns, list) else turns]

    def error(self, number: int, message: str, context: str | None, hint: str) -> DataError:
        """See ``Records``."""
        return self._records.error(number, message, context, hint)


def _message(turn: object) -> object:
    """Return a turn as a message; anything else as it is, which the conversation then refuses."""
    if not isinstance(turn, Mapping) or not {"from", "value"} <= turn.keys():
        return turn
    speaker = turn["from"]
    return {"role": _ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker, "content": turn["value"]}
