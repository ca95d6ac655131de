"""A text from a text, by an encoder and a decoder: translations, summaries, answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgepeft.data.records import Records
from edgepeft.data.tasks.base import ROWS, Model, Reading, Task, text_inputs, token_ids
from edgepeft.data.tasks.sequences import decoder_start, read_pairs
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.files.tensorfile import Array


@dataclass(frozen=True)
class Seq2SeqLM(Task):
    """The labels are the ids of the second text. The decoder reads them one position later, as transformers does."""

    name: ClassVar[str] = "seq2seq-lm"
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    mappings: ClassVar[tuple[str, ...]] = ("SEQ_TO_SEQ_CAUSAL_LM",)
    text: ClassVar[bool] = True
    fields: ClassVar[Mapping[str, str]] = {
        "input_ids": "ids",
        "attention_mask": "attention_mask",
        "decoder_input_ids": "decoder_ids",
    }
    half: ClassVar[bool] = True

    def special(self, model: Model) -> dict[str, int]:
        return decoder_start(model.config)

    def example(self, model: Model) -> dict[str, Array]:
        return {**text_inputs(model), "decoder_input_ids": token_ids(model.config, ROWS, model.length - 2, seed=1)}

    def table(self, records: Records, reading: Reading) -> Dataset:
        return read_pairs(records, reading)
