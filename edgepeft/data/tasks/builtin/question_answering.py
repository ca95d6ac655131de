"""The part of a text that answers a question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.errors import WrongColumns
from edgepeft.data.records import Records
from edgepeft.data.tasks.base import Model, Reading, Task, text_inputs
from edgepeft.data.text import longest_of, text_spec_of, texts_of
from edgepeft.data.tokenizer import tokenizer_of
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.errors import NoData
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.names import some
from edgepeft_runtime.notices import notice
from edgepeft_runtime.shown import quoted

QUESTION, CONTEXT, ANSWERS = "question", "context", "answers"
STARTS, ENDS = "start_positions", "end_positions"


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Rows as in SQuAD: ``question``, ``context``, and ``answers`` with ``text`` and ``answer_start``, or one text.

    A long context becomes several examples that overlap by a quarter. Where the answer is not in one, or there is none,
    both positions are 0, which is that of the first special token.
    """

    name: ClassVar[str] = "question-answering"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    mappings: ClassVar[tuple[str, ...]] = ("QUESTION_ANSWERING",)
    endings: ClassVar[tuple[str, ...]] = ("ForQuestionAnswering",)
    loss: ClassVar[str] = "span"
    outputs: ClassVar[tuple[str, ...] | None] = ("start_logits", "end_logits")
    text: ClassVar[bool] = True
    half: ClassVar[bool] = True

    def example(self, model: Model) -> dict[str, Array]:
        return text_inputs(model)

    def table(self, records: Records, reading: Reading) -> Dataset:
        wanted = [QUESTION, CONTEXT, *([ANSWERS] if reading.labelled else [])]
        missing = [name for name in wanted if name not in records.columns]
        if missing:
            raise WrongColumns(
                f"{records.source}: There is no column {', '.join(missing)}.",
                context=f"columns: {some(records.columns, 20)}",
                hint=f"give the columns {QUESTION}, {CONTEXT} and {ANSWERS}, as SQuAD has them.",
            )
        manifest = reading.bundle.manifest
        tokenizer, longest = tokenizer_of(reading.bundle), longest_of(manifest, text_spec_of(manifest))
        tokenizer.enable_truncation(longest, stride=longest // 4, strategy="only_second")
        ids, types, spans, rows = list[NDArray[np.int32]](), list[NDArray[np.uint8]](), list[tuple[int, int]](), 0
        for number, (question, context, *answers) in records.rows(wanted):
            rows += 1
            question, context = _text(records, number, question), _text(records, number, context)
            answer = _answer(records, number, context, answers[0]) if answers else None
            try:
                encoding = tokenizer.encode(question, context)
            except Exception as failure:  # tokenizers raises the bare class
                hint = "shorten the question, or prepare the bundle with a greater --max-length."
                raise records.error(number, "The question is too long.", str(failure), hint) from None
            for part in (encoding, *encoding.overflowing):
                ids.append(np.asarray(part.ids, np.int32))
                types.append(np.asarray(part.type_ids, np.uint8))
                spans.append(_span(list(part.sequence_ids), list(part.offsets), answer))
        if not ids:
            raise NoData(f"{records.source} contains no examples.", context=None, hint="give at least one question.")
        if len(ids) > rows:
            notice(f"{records.source}: {rows} questions are {len(ids)} examples of at most {longest} tokens.")
        labels: Mapping[str, Array] = {}
        if reading.labelled:
            starts, ends = np.asarray(spans, np.int64).T
            labels = {STARTS: starts, ENDS: ends}
        return texts_of(ids, manifest, type_ids=types, labels=labels)


def _text(records: Records, number: int, value: object) -> str:
    if isinstance(value, str) and value:
        return value
    hint = "write it as a string, or leave the row out."
    raise records.error(number, "A question or context is not text.", f"found {quoted(value)}", hint)


def _answer(records: Records, number: int, context: str, value: object) -> tuple[int, int] | None:
    """Return the first and last (exclusive) character of an answer; ``None`` if there is none.

    A text alone stands for its first occurrence.
    """
    for text, start in _candidates(value):
        start = context.find(text) if start is None else start
        if text and start >= 0 and context[start : start + len(text)] == text:
            return start, start + len(text)
        found = f"{quoted(text)} at {start}, where the context has {quoted(context[max(start, 0) :][: len(text)])}"
        hint = "correct answer_start, which counts characters from 0, or leave the row out."
        raise records.error(number, "The answer is not in the context.", found, hint)
    return None


def _candidates(value: object) -> Iterator[tuple[str, int | None]]:
    """Yield the first answer of a row, if there is one."""
    if isinstance(value, str) and value:
        yield value, None
    if isinstance(value, Mapping):
        texts, starts = value.get("text") or [], value.get("answer_start")
        texts = [texts] if isinstance(texts, str) else list(texts)
        starts = [starts] if isinstance(starts, int) else list(starts or [])
        if texts:
            yield str(texts[0]), int(starts[0]) if starts else None


def _span(
    sequences: list[int | None], offsets: list[tuple[int, int]], answer: tuple[int, int] | None
) -> tuple[int, int]:
    """Return the first and last token of an answer, or zeros if not all of it is among the tokens."""
    context = [index for index, sequence in enumerate(sequences) if sequence == 1]
    if answer is None or not context or offsets[context[0]][0] > answer[0] or offsets[context[-1]][1] < answer[1]:
        return 0, 0
    first = max(index for index in context if offsets[index][0] <= answer[0])
    return first, next(index for index in context if offsets[index][1] >= answer[1])
