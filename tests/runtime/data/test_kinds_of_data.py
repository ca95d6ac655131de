"""What people pass to ``fit`` and ``evaluate``: every kind trains as the same arrays do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft_runtime import Trainer
from edgepeft_runtime.data.sources import source_of
from edgepeft_runtime.errors import DataError, EdgepeftError
from edgepeft_runtime.notices import EdgepeftWarning
from tests.support.tiny_bundle import examples

DATA = examples(20)
X, Y = DATA["x"], DATA["labels"]


class MapStyle:
    """A map-style data set as torch defines it."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        if not 0 <= row < len(X):
            raise IndexError(row)
        return X[row], int(Y[row])


def _rows(epoch: int = 0) -> Iterator[dict[str, Any]]:
    del epoch
    return ({"x": x, "labels": y} for x, y in zip(X, Y, strict=True))


def _loader(**settings: Any) -> Any:
    torch = pytest.importorskip("torch")
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(X).requires_grad_(), torch.from_numpy(Y))
    return torch.utils.data.DataLoader(dataset, batch_size=8, **settings)


def _named(batch: list[Any]) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    return {"x": torch.stack([x for x, _ in batch]), "labels": torch.stack([y for _, y in batch])}


def _frame(package: str) -> Any:
    return pytest.importorskip(package).DataFrame({"x": X.tolist(), "labels": Y.tolist()})


def _huggingface() -> Any:
    datasets, pyarrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    table = datasets.table.InMemoryTable(pyarrow.table({"x": X.tolist(), "labels": Y.tolist()}))
    return datasets.Dataset(table, fingerprint="test")  # from_dict pickles types, which not every pyarrow allows


KINDS: dict[str, Callable[[], Any]] = {
    "tuple of arrays": lambda: (X, Y),
    "map-style": MapStyle,
    "list of tuples": lambda: list(zip(X, Y, strict=True)),
    "list of lists": lambda: [(x.tolist(), int(y)) for x, y in zip(X, Y, strict=True)],
    "list of dicts": lambda: list(_rows()),
    "list of batches in tuples": lambda: [(X[:8], Y[:8]), (X[8:16], Y[8:16]), (X[16:], Y[16:])],
    "function to examples": lambda: _rows,
    "DataLoader": _loader,
    "DataLoader of dicts": lambda: _loader(collate_fn=_named),
    "torch data set": lambda: _loader().dataset,
    "pandas": lambda: _frame("pandas"),
    "polars": lambda: _frame("polars"),
    "datasets": lambda: _huggingface(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_data_trains_as_arrays_do(kind: str, bundle: Path) -> None:
    """Without shuffling the losses and the parameters are those of a dict of arrays, to the bit."""
    with Trainer.open(bundle, threads=1) as one, Trainer.open(bundle, threads=1) as other:
        expected = one.fit(DATA, epochs=2, batch_size=8, shuffle=False)
        report = other.fit(KINDS[kind](), epochs=2, batch_size=8, shuffle=False)
        assert [record.loss for record in report.history] == [record.loss for record in expected.history]
        for name, array in one.parameters().items():
            assert np.array_equal(array, other.parameters()[name])
        assert other.evaluate(KINDS[kind]()) == one.evaluate(DATA)


@pytest.mark.parametrize("kind", ["map-style", "list of dicts", "pandas", "datasets"])
def test_examples_with_an_index_are_shuffled_like_arrays(kind: str, bundle: Path) -> None:
    """The same seed gives the same order."""
    with Trainer.open(bundle, threads=1) as one, Trainer.open(bundle, threads=1) as other:
        expected = one.fit(DATA, epochs=2, batch_size=8)
        assert other.fit(KINDS[kind](), epochs=2, batch_size=8).history == expected.history


def test_streams_of_examples_are_shuffled_by_a_buffer(bundle: Path) -> None:
    """Each epoch has every example once, in another order, and the same seed repeats it."""
    with Trainer.open(bundle) as trainer:
        manifest = trainer.bundle.manifest
    source = source_of(_rows, manifest, 8, shuffle_seed=3)
    first, again, second = (np.concatenate([b["x"] for b in source.batches(epoch)]) for epoch in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, X)
    assert np.array_equal(np.sort(first[:, 0]), np.sort(X[:, 0]))
    assert np.array_equal(np.concatenate([b["x"] for b in source.batches(1, skip=1)]), second[8:])
    several = np.arange(3000, dtype=np.float32)
    stream = source_of(lambda _: ((np.full(4, n), 0) for n in several), manifest, 8, shuffle_seed=3)
    drawn = np.concatenate([b["x"][:, 0] for b in stream.batches(0)])
    assert np.array_equal(np.sort(drawn), several)
    assert (drawn[:1900] <= np.arange(1900) + 1024).all()


def test_steps_and_predictions_take_tuples(bundle: Path) -> None:
    """In the manifest's order; labels are left out of predictions."""
    with Trainer.open(bundle, threads=1) as one, Trainer.open(bundle, threads=1) as other:
        assert one.step((X, Y)) == other.step(DATA)
        assert np.array_equal(one.predict((X,))["logits"], other.predict({"x": X})["logits"])
        assert np.array_equal(one.predict((X, Y), batch_size=7)["logits"], other.predict(DATA, batch_size=7)["logits"])


def test_sequences_of_tokens_are_padded(text: Any) -> None:
    """As a tokenizer returns them, example by example; the label may be called as transformers' data sets call it."""
    rows = [{"input_ids": [2, 5, 3], "attention_mask": [1, 1, 1], "label": 1, "idx": 0}]
    rows += [{"input_ids": [2, 5, 6, 5, 3], "attention_mask": [1] * 5, "label": 0, "idx": 1}]
    with Trainer.open(text.bundle) as trainer:
        with pytest.warns(EdgepeftWarning) as notices:
            source = source_of(rows, trainer.bundle.manifest, 8)
        assert trainer.evaluate(source.batches(0)).examples == 2
    batch = next(source.batches(0))
    pad = trainer.bundle.manifest.text.pad_id
    assert batch["input_ids"].tolist() == [[2, 5, 3, pad, pad], [2, 5, 6, 5, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [1, 0]
    said = " ".join(str(one.message) for one in notices)
    assert "'label' is used as 'labels'" in said
    assert "not used: idx" in said


REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "csv": (lambda: "texts.csv", "unknown-data", "load('texts.csv', trainer.bundle)"),
    "pairs of texts": (lambda: [("a good film", "yes"), ("bad", "no")], "text-in-batch", "edgepeft.data.load"),
    "texts": (lambda: ["a good film", "bad"], "text-in-batch", "edgepeft.data.load"),
    "dicts of texts": (lambda: [{"x": "a good film", "labels": 1}], "text-in-batch", "edgepeft.data.load"),
    "a column too few": (lambda: [{"x": X[0]}], "missing-column", "'labels'"),
    "shapes that differ": (lambda: [(X[0], 1), (X[0][:2], 1)], "different-lengths", "collate_fn"),
    "no examples": (list, "no-data", ""),
    "a number": (lambda: 3, "unknown-data", "DataLoader"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_data_is_refused_with_a_way_out(kind: str, bundle: Path) -> None:
    """The hint says how to read it."""
    data, code, words = REFUSED[kind]
    with Trainer.open(bundle) as trainer, pytest.raises(EdgepeftError) as caught:
        trainer.fit(data())
    assert caught.value.code == code
    assert words in str(caught.value)


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_frames_of_texts_are_refused_with_a_way_out(package: str, bundle: Path) -> None:
    """A frame with other columns names the bundle's and points to the reader of texts."""
    frame = pytest.importorskip(package).DataFrame({"text": ["good", "bad"], "label": ["yes", "no"]})
    with Trainer.open(bundle) as trainer, pytest.raises(DataError, match=r"edgepeft\.data\.load"):
        trainer.fit(frame)
