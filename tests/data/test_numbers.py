"""Tables of numbers for models of vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepeft.data import load
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import DataError
from edgepeft_runtime.notices import EdgepeftWarning
from tests.support.bundles import Trained

ROWS = {
    "d.csv": 'a,label,b,c\n1,"[1, 2]",2.5,-3e-2\n0,"[0, 0.5]",1,1\n',
    "d.jsonl": '{"a": 1, "label": [1, 2], "b": 2.5, "c": -0.03}\n{"b": 1, "a": 0, "c": 1, "label": [0, 0.5]}\n',
}


@pytest.mark.parametrize("name", ROWS)
def test_columns_are_the_numbers_of_an_input(regression: Trained, tmp_path: Path, name: str) -> None:
    """In the order of the file, which one line says; the label column may stand anywhere."""
    (tmp_path / name).write_text(ROWS[name])
    with pytest.warns(EdgepeftWarning, match="'input' consists of the columns a, b, c, in this order"):
        data = load(tmp_path / name, Bundle.open(regression.bundle))
    batch = data.batch(np.array([1, 0]))
    assert np.array_equal(batch["input"], np.array([[0, 1, 1], [1, 2.5, -0.03]], np.float32))
    assert batch["labels"].tolist() == [[0, 0.5], [1, 2]]
    with Trainer.open(regression.bundle) as trainer:
        assert np.isfinite(trainer.evaluate(data).loss)
        plain = load(tmp_path / name, trainer.bundle, labelled=False)
        assert trainer.predict(plain.batch(np.arange(2)))["output"].shape == (2, 2)


def test_a_text_column_is_not_used(regression: Trained, tmp_path: Path) -> None:
    """It is one of the columns of numbers."""
    (tmp_path / "d.csv").write_text(ROWS["d.csv"])
    with pytest.warns(EdgepeftWarning, match="text column is not used"):
        load(tmp_path / "d.csv", Bundle.open(regression.bundle), text_column="a")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b,label\n1,2,3\n", ["does not accept text, but 3 numbers", "columns: a, b, label", "2 are left"]),
        ('a,b,c,label\n1,2,3,"[1, 2]"\n1,,3,"[1, 2]"\n', ["line 3", "column 'b'", "found ''"]),
        ('a,b,c,label\n1,"2,5",3,"[1, 2]"\n', ["line 2", "found '2,5'"]),
        ('a,b,c,label\n1,nan,3,"[1, 2]"\n', ["line 2", "found 'nan'"]),
        ("a,b,c,label\n1,2,3,4\n", ["line 2: The label is not known", "shape [2]"]),
        ("a,b,c,lable\n1,2,3,4\n", ["4 are left"]),
        ("a,b,c,label\n", ["no examples"]),
    ],
)
@pytest.mark.filterwarnings("ignore::edgepeft_runtime.notices.EdgepeftWarning")
def test_a_mistake_in_a_table_of_numbers_is_named(
    regression: Trained, tmp_path: Path, content: str, words: list[str]
) -> None:
    """Another number of columns, a cell that is empty or no number, a label of another shape."""
    (tmp_path / "d.csv").write_text(content)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "d.csv", Bundle.open(regression.bundle))
    assert "d.csv" in caught.value.message
    for word in words:
        assert word in str(caught.value)
