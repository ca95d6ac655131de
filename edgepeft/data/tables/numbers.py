"""Read rows of numbers from tables, for models whose input is a vector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.errors import WrongColumns
from edgepeft.data.labels import BadLabel, label_reader, notice_one_class, number, only_label, weights_label
from edgepeft.data.memory import rows_in_memory
from edgepeft.data.records import Records, read_records
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import TableSpec, TensorSpec
from edgepeft_runtime.data.datasets import Arrays
from edgepeft_runtime.errors import NoData
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.names import some
from edgepeft_runtime.notices import notice
from edgepeft_runtime.shown import quoted


def takes_rows(manifest: Manifest) -> bool:
    """Whether the model's only input is a vector of floats for each example."""
    spec = manifest.inputs[0]
    vector = len(spec.shape) == 2 and isinstance(spec.shape[1], int) and spec.dtype.startswith("float")
    return manifest.text is None and len(manifest.inputs) == 1 and vector


def standardization(data: Any, *, label_column: str = "label") -> TableSpec:
    """Return the columns of training data, with the mean and the standard deviation of each.

    A bundle that is prepared with it reads its columns by their names, and standardizes them, for training, evaluation
    and prediction alike. A column with one value is only centered.

    Args:
        data: A table that ``edgepeft.data.load`` reads: the path of a file, a frame, a dict of columns.
        label_column: Column of the labels, which is left out.

    Raises:
        DataError: A cell is not a finite number. The message names row and column.
    """
    is_path = isinstance(data, str | Path)
    records = read_records(Path(data)) if is_path else rows_in_memory(data, (), label_column)
    names = [name for name in records.columns if name != label_column]
    rows = [_numbers(records, line, names, cells) for line, cells in records.rows(names)]
    if not rows or not names:
        raise NoData(f"{records.source} contains no numbers.", context=None, hint="give columns and at least one row.")
    values = np.stack(rows)
    mean, std = values.mean(axis=0), values.std(axis=0)
    constant = [name for name, spread in zip(names, std, strict=True) if spread == 0]
    if constant:
        notice(f"{records.source}: columns with one value are centered only: {some(constant)}.")
    return TableSpec(tuple(names), tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist()))


def read_rows(records: Records, manifest: Manifest, label: str, *, labelled: bool) -> Arrays:
    """Read the columns of a table as one input, and the label column.

    The bundle names the columns and standardizes them, or else they are those of the table, in its order.

    Raises:
        DataError: The number of columns differs from the input's, a cell is not a finite number, or a label has no
            meaning. The message names the file and the line.
    """
    spec = manifest.inputs[0]
    table = manifest.table
    weights = weights_label(manifest)
    others = (label,) if weights is None else (label, weights.name)
    names = _features(records, spec, others) if table is None else _named(records, table, others)
    read, rows, labels = label_reader(manifest) if labelled else None, list[Array](), list[Array]()
    for line, cells in records.rows([*names, label] if labelled else names):
        rows.append(_standardized(_numbers(records, line, names, cells), table, spec))
        if read is not None:
            try:
                labels.append(read(cells[-1]))
            except BadLabel as failure:
                hint = "correct the label, or leave the line out."
                raise records.error(line, "The label is not known.", str(failure), hint) from None
    if not rows:
        raise NoData(f"{records.source} contains no examples.", context=None, hint="give at least one line of data.")
    arrays = {spec.name: np.stack(rows)}
    if not labelled:
        return Arrays(arrays)
    stacked = np.stack(labels)
    notice_one_class(records.source, stacked, manifest)
    return Arrays(arrays | {only_label(manifest).name: stacked})


def _features(records: Records, spec: TensorSpec, others: tuple[str, ...]) -> list[str]:
    present, wanted = records.columns, int(spec.shape[1])
    names = [name for name in present if name not in others]
    if len(names) != wanted:
        shown = some(present, 20) or "none"
        raise WrongColumns(
            f"{records.source}: The bundle does not accept text, but {wanted} numbers per example.",
            context=f"columns: {shown}; the label is {quoted(others[0])}, and {len(names)} are left",
            hint=f"give a column for each number of {spec.name!r}, in its order, or arrays as .npz.",
        )
    notice(f"{records.source}: the input {spec.name!r} consists of the columns {some(names)}, in this order.")
    return names


def _named(records: Records, table: TableSpec, others: tuple[str, ...]) -> list[str]:
    unused = [name for name in records.columns if name not in (*table.columns, *others)]
    if unused:
        notice(f"{records.source}: columns that are not used: {some(unused)}.")
    return list(table.columns)


def _standardized(cells: NDArray[np.float64], table: TableSpec | None, spec: TensorSpec) -> Array:
    if table is not None:
        cells = (cells - np.asarray(table.mean)) / np.asarray(table.std)
    with np.errstate(over="ignore"):  # the check of its batch refuses an infinite value
        return cells.astype(spec.dtype)


def _numbers(records: Records, line: int, names: list[str], cells: list[object]) -> NDArray[np.float64]:
    """Return the cells of a row as numbers."""
    for name, cell in zip(names, cells, strict=False):
        if number(cell) is None:
            raise records.error(
                line,
                "A value is missing." if _is_missing(cell) else "A cell is not a number.",
                f"column {quoted(name)}: expected a finite number, found {quoted(cell)}",
                _advice(cell),
            )
    return np.asarray([number(cell) for cell in cells[: len(names)]], np.float64)


def _is_missing(cell: object) -> bool:
    text = cell.strip().lower() if isinstance(cell, str) else cell
    return text is None or text in ("", "na", "n/a", "nan", "null", "none", "?") or text != text


def _advice(cell: object) -> str:
    if _is_missing(cell):
        return "fill in missing values, or leave the line out."
    if isinstance(cell, bool):
        return "write 0 and 1."
    if isinstance(cell, str) and not any(letter.isdigit() for letter in cell):
        return "write categories as numbers: one column of 0 and 1 for each of them; or leave the column out."
    return "write it with a decimal point and without separators of thousands, or leave the line out."
