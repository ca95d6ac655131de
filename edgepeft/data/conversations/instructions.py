"""Rows of ``instruction``, ``input`` and ``output``, as Alpaca's data has them, as prompts and answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgepeft.data.records import Records, Row
from edgepeft_runtime.errors import DataError
from edgepeft_runtime.shown import quoted

INSTRUCTION, INPUT, OUTPUT = "instruction", "input", "output"


class Instructions:
    """Rows with the columns ``prompt`` (the instruction and, after an empty line, its input, if any) and ``answer``.

    Args:
        records: Rows with an instruction, an output unless it is not needed, and maybe an input.
    """

    def __init__(self, records: Records) -> None:
        self.source = records.source
        self.columns = ["prompt", "answer"] if OUTPUT in records.columns else ["prompt"]
        self._records = records

    def rows(self, wanted: Sequence[str], fields: dict[str, None] | None = None) -> Iterator[Row]:
        """See ``Records``."""
        own = {"prompt": INSTRUCTION, "answer": OUTPUT}
        names, found = [own[name] for name in wanted], dict[str, None]()
        more = [INPUT] if INPUT in self._records.columns else []
        for number, cells in self._records.rows([*names, *more], found):
            values = dict(zip([*wanted, *more], cells, strict=True))
            if "prompt" in values:
                values["prompt"] = self._prompt(number, values["prompt"], values.get(INPUT))
            if fields is not None:
                used = dict.fromkeys(self.columns)
                fields.update(used | {name: None for name in found if name not in (INSTRUCTION, INPUT, OUTPUT)})
            yield number, [values[name] for name in wanted]

    def error(self, number: int, message: str, context: str | None, hint: str) -> DataError:
        """See ``Records``."""
        return self._records.error(number, message, context, hint)

    def _prompt(self, number: int, instruction: object, further: object) -> object:
        if further is None or further == "":
            return instruction
        if not isinstance(instruction, str) or not isinstance(further, str):
            found = f"found {quoted(instruction)} and {quoted(further)}"
            raise self.error(number, "Instruction and input are not texts.", found, "write them as strings.")
        return f"{instruction}\n\n{further}"
