"""Read rows of numbers from tables, for models whose input is a vector."""

from __future__ import annotations

import numpy as np

from edgepeft.data.errors import WrongColumns
from edgepeft.data.labels import BadLabel, label_reader, number, only_label
from edgepeft.data.records import Records
from edgepeft_runtime.bundle.manifest import Manifest, TensorSpec
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


def read_rows(records: Records, manifest: Manifest, label: str, *, labelled: bool) -> Arrays:
    """Read the columns of a table as one input, in the order of the table, and the label column.

    Raises:
        DataError: The number of columns differs from the input's, a cell is not a finite number, or a label has no
            meaning. The message names the file and the line.
    """
    spec = manifest.inputs[0]
    names = _features(records, spec, label)
    read, rows, labels = label_reader(manifest) if labelled else None, list[Array](), list[Array]()
    for line, cells in records.rows([*names, label] if labelled else names):
        rows.append(_row(records, line, names, cells, spec))
        if read is not None:
            try:
                labels.append(read(cells[-1]))
            except BadLabel as failure:
                hint = "correct the label, or leave the line out."
                raise records.error(line, "The label is not known.", str(failure), hint) from None
    if not rows:
        raise NoData(f"{records.source} contains no examples.", context=None, hint="give at least one line of data.")
    arrays = {spec.name: np.stack(rows)}
    return Arrays(arrays | ({only_label(manifest).name: np.stack(labels)} if labelled else {}))


def _features(records: Records, spec: TensorSpec, label: str) -> list[str]:
    present, wanted = records.columns, int(spec.shape[1])
    names = [name for name in present if name != label]
    if len(names) != wanted:
        raise WrongColumns(
            f"{records.source}: The bundle does not take text, but {wanted} numbers per example.",
            context=f"columns: {some(present, 20) or 'none'}; the label is {quoted(label)}, and {len(names)} are left",
            hint=f"give a column for each number of {spec.name!r}, in its order, or arrays as .npz.",
        )
    notice(f"{records.source}: the input {spec.name!r} consists of the columns {some(names)}, in this order.")
    return names


def _row(records: Records, line: int, names: list[str], cells: list[object], spec: TensorSpec) -> Array:
    for name, cell in zip(names, cells, strict=False):
        if number(cell) is None:
            raise records.error(
                line,
                "A cell is not a number.",
                f"column {quoted(name)}: expected a finite number, found {quoted(cell)}",
                "write it with a decimal point, fill in missing values, or leave the line out.",
            )
    with np.errstate(over="ignore"):  # the check of its batch refuses an infinite value
        return np.asarray([number(cell) for cell in cells[: len(names)]], dtype=spec.dtype)
