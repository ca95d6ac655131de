"""The next token of a text: whole texts, answers to prompts, and conversations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgepeft.data.conversations.instructions import INSTRUCTION, Instructions
from edgepeft.data.conversations.sharegpt import CONVERSATIONS, SharedConversations
from edgepeft.data.conversations.turns import MESSAGES, conversed
from edgepeft.data.records import Records
from edgepeft.data.table import read_table
from edgepeft.data.tasks.base import Model, Reading, Task, text_inputs
from edgepeft.data.tasks.columns import LABEL, TEXT, Columns, notice_unused
from edgepeft.data.text import answered, continued, prompted
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.files.tensorfile import Array

PAIRS = (("prompt", "answer"), ("prompt", "completion"))
"""Columns that data may have instead of the default ones."""

_CHAT = "conversations go through the bundle's chat template"


@dataclass(frozen=True)
class CausalLM(Task):
    """With a label column the text is a prompt, and its answer is learned."""

    name: ClassVar[str] = "causal-lm"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    mappings: ClassVar[tuple[str, ...]] = ("CAUSAL_LM",)
    endings: ClassVar[tuple[str, ...]] = ("ForCausalLM", "LMHeadModel")
    loss: ClassVar[str] = "causal_lm"
    text: ClassVar[bool] = True
    prompts: ClassVar[bool] = True
    half: ClassVar[bool] = True

    def example(self, model: Model) -> dict[str, Array]:
        return text_inputs(model)

    def table(self, records: Records, reading: Reading) -> Dataset:
        names, bundle, labelled = reading.columns, reading.bundle, reading.labelled
        if not names.given and TEXT not in records.columns:
            if CONVERSATIONS in records.columns and MESSAGES not in records.columns:
                records = SharedConversations(records)
            if MESSAGES in records.columns:
                notice_unused(records.source, names, reading.template, _CHAT)
                return conversed(records, [MESSAGES], bundle, labelled=labelled)
            if INSTRUCTION in records.columns:
                records = Instructions(records)
            columns = next((pair for pair in PAIRS if set(pair) <= set(records.columns)), ("prompt", "answer"))
            if columns[0] in records.columns:
                if _of_messages(records, columns[0]):
                    notice_unused(records.source, names, reading.template, _CHAT)
                    return conversed(records, columns if labelled else columns[:1], bundle, labelled=labelled)
                names = Columns(columns[:1], columns[1])
        if names.label not in records.columns and names.label == LABEL:
            return continued(read_table(records, names.texts, None), bundle, labelled=labelled)
        if labelled:
            return answered(read_table(records, names.texts, names.label), bundle, reading.template)
        return prompted(read_table(records, names.texts, None, known=(names.label,)), bundle, reading.template)


def _of_messages(records: Records, column: str) -> bool:
    """Whether the first value of a column is a list of messages."""
    return isinstance(next(records.rows([column]), (1, [""]))[1][0], list)
