"""Activations are kept between epochs: later ones start above what is frozen, with the same losses, and resume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from edgepeft_runtime.engine.activations import Activations
from edgepeft_runtime.engine.row_store import RowStore
from edgepeft_runtime.engine.sessions import OrtTensors, Sessions
from edgepeft_runtime.errors import BadSetting, NothingToCache
from edgepeft_runtime.notices import EdgepeftWarning
from edgepeft_runtime.train.callbacks import Callback
from edgepeft_runtime.train.limits import Pause
from edgepeft_runtime.train.records import FitReport, StepPart
from edgepeft_runtime.train.trainer import Trainer
from tests.support import segmented_bundle
from tests.support.damage import assert_equal_bits
from tests.support.segmented_bundle import FORWARD, START
from tests.support.tiny_bundle import examples

DATA = examples(20)
PLAN = {"epochs": 3, "batch_size": 6, "lr": 0.02}
OWNER = b"o" * 32


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each graph runs."""
    counts: Counter[str] = Counter()
    original = Sessions.run

    def run(sessions: Sessions, graph: str, outputs: Sequence[str], inputs: OrtTensors) -> dict[str, ort.OrtValue]:
        counts[graph] += 1
        return original(sessions, graph, outputs, inputs)

    monkeypatch.setattr(Sessions, "run", run)
    return counts


def _fit(bundle: Path, state: Path, **settings: object) -> tuple[FitReport, dict[str, np.ndarray]]:
    with Trainer.open(bundle, state=state, threads=1) as trainer:
        report = trainer.fit(DATA, **{**PLAN, "cache": "activations", **settings})
        return report, trainer.parameters()


def _losses(report: FitReport) -> list[float]:
    return [float(record.loss or 0) for record in report.history]


def test_later_epochs_run_only_what_trains(segmented: Path, tmp_path: Path, runs: Counter[str]) -> None:
    """Four batches an epoch: the frozen graph runs in the first of three epochs, the others in all."""
    report, parameters = _fit(segmented, tmp_path / "state")
    assert runs[START] == 4
    assert runs[FORWARD] == 3 * 4 * 2
    runs.clear()
    plain, others = _fit(segmented, tmp_path / "plain", cache="none")
    assert runs[START] == 3 * 4
    np.testing.assert_allclose(_losses(report), _losses(plain), rtol=1e-3)
    for name, array in parameters.items():
        np.testing.assert_allclose(array, others[name], rtol=2e-2, atol=2e-3)


def test_a_run_with_kept_activations_resumes_to_the_bit(segmented: Path, tmp_path: Path, runs: Counter[str]) -> None:
    """Also in the middle of an epoch whose batches mix kept and new examples, and after a crash."""
    straight = _fit(segmented, tmp_path / "straight")
    report = straight[0]
    for stop in (3, 6, None):
        left = iter(range(3 if stop else 1000))
        pause = lambda left=left: None if next(left, None) is not None else Pause("minutes", "over")  # noqa: E731
        runs.clear()
        report, parameters = _fit(segmented, tmp_path / "state", pause=pause)
    assert runs[START] == 0
    assert report.finished
    assert _losses(report) == _losses(straight[0])
    assert_equal_bits(parameters, straight[1])


def test_a_new_process_uses_what_is_kept(segmented: Path, tmp_path: Path, runs: Counter[str]) -> None:
    """Another call on the same examples computes none of them; damaged and missing ones are computed again."""
    first = _fit(segmented, tmp_path / "state", max_steps=4)
    kept = (tmp_path / "state" / "activations.bin").read_bytes()
    for content, expected in ((kept, 0), (kept[:-1], 1), (kept[:200] + b"\xff" + kept[201:], 1), (b"", 4)):
        (tmp_path / "again").mkdir(exist_ok=True)
        (tmp_path / "again" / "activations.bin").write_bytes(content)
        runs.clear()
        again = _fit(segmented, tmp_path / "again", max_steps=4)
        assert runs[START] == expected
        assert_equal_bits(again[1], first[1])
        for file in (tmp_path / "again").glob("checkpoint*"):
            file.unlink()


def test_what_has_no_room_is_computed_each_time(segmented: Path, tmp_path: Path, runs: Counter[str]) -> None:
    """The results are the same: what is computed is rounded as if it had been kept."""
    whole = _fit(segmented, tmp_path / "whole")
    runs.clear()
    with pytest.warns(EdgepeftWarning, match="no more room for activations"):
        bounded = _fit(segmented, tmp_path / "bounded", cache_bytes=400)
    assert 4 < runs[START] <= 12
    assert (tmp_path / "bounded" / "activations.bin").stat().st_size <= 400
    np.testing.assert_allclose(_losses(bounded[0]), _losses(whole[0]), rtol=1e-6)


def test_other_weights_start_anew(segmented: Path, tmp_path: Path, runs: Counter[str]) -> None:
    """The file belongs to graphs and frozen weights, not to the adapter."""
    other = segmented_bundle.build(tmp_path / "other", seed=8)
    _fit(segmented, tmp_path / "state", max_steps=4)
    kept = (tmp_path / "state" / "activations.bin").read_bytes()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "activations.bin").write_bytes(kept)
    runs.clear()
    _fit(other, tmp_path / "new", max_steps=4)
    assert runs[START] == 4
    assert (tmp_path / "new" / "activations.bin").read_bytes() != kept


def test_what_cannot_be_kept_is_refused(segmented: Path, bundle: Path, tmp_path: Path) -> None:
    """Without a value in the manifest, without a directory, and for an unknown kind."""
    with pytest.raises(NothingToCache, match="something trains in every part"):
        _fit(bundle, tmp_path / "state")
    with Trainer.open(segmented) as trainer:
        with pytest.raises(BadSetting, match="state directory"):
            trainer.fit(DATA, cache="activations")
        with pytest.raises(BadSetting, match="none or activations"):
            trainer.fit(DATA, cache="weights")


def test_values_beyond_float16_stay_in_float32(tmp_path: Path) -> None:
    """Each example has the dtype that its values need."""
    store = RowStore(tmp_path / "rows", OWNER, 10**6)
    small, large = np.float32([[1.0, -3.25]]), np.float32([[1e6, 0.1]])
    for key, row in ((b"a" * 16, small), (b"b" * 16, large)):
        assert store.put(key, Activations.rounded(row))
    store.close()
    again = RowStore(tmp_path / "rows", OWNER, 10**6)
    assert [again.get(key * 16).dtype for key in (b"a", b"b")] == [np.float16, np.float32]
    np.testing.assert_array_equal(again.get(b"b" * 16), large)
    np.testing.assert_array_equal(again.get(b"a" * 16), small)
    again.close()


def test_random_damage_to_a_store_never_escapes(tmp_path: Path) -> None:
    """Whatever a file holds, an array is returned as it was put, or not at all."""
    draw = np.random.default_rng(5)
    rows = {bytes([key]) * 16: draw.normal(size=(key % 3 + 1, 4)).astype(np.float16) for key in range(9)}
    store = RowStore(tmp_path / "rows", OWNER, 10**6)
    assert all(store.put(key, row) for key, row in rows.items())
    store.close()
    whole = (tmp_path / "rows").read_bytes()
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(int(draw.integers(1, 4))):
            content[int(draw.integers(0, len(content)))] = int(draw.integers(0, 256))
        (tmp_path / "rows").write_bytes(content[: int(draw.integers(0, len(content) + 1))])
        store = RowStore(tmp_path / "rows", OWNER, 10**6)
        for key, row in rows.items():
            found = store.get(key)
            assert found is None or np.array_equal(found, row)
        store.close()


def test_a_pause_within_a_step_changes_nothing(
    segmented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that ends between two graphs starts again when the run is resumed."""
    straight = _fit(segmented, tmp_path / "straight", cache="none")
    monkeypatch.setattr("edgepeft_runtime.train.fit.EVERY_SECOND", 0.0)
    stops = 0
    for calls in (9, 23, 31, 10_000):
        left = iter(range(calls))
        pause = lambda left=left: None if next(left, None) is not None else Pause("minutes", "over")  # noqa: E731
        report, parameters = _fit(segmented, tmp_path / "state", cache="none", pause=pause)
        stops += not report.finished
    assert stops == 3
    assert_equal_bits(parameters, straight[1])


class _Parts(Callback):
    def __init__(self, parts: list[StepPart]) -> None:
        self.on_part = parts.append  # type: ignore[method-assign]


def test_a_long_step_says_how_far_it_is(segmented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between all calls of each step, but not of an evaluation, and the results stay the same to the bit."""
    straight = _fit(segmented, tmp_path / "straight", cache="none")
    parts: list[StepPart] = []
    monkeypatch.setattr("edgepeft_runtime.train.fit.EVERY_SECOND", 0.0)
    _, nothing = _fit(segmented, tmp_path / "short", cache="none", callbacks=[_Parts(parts)])
    assert not parts
    monkeypatch.setattr("edgepeft_runtime.train.fit.LONG_STEP", 0.0)
    _, parameters = _fit(
        segmented, tmp_path / "long", cache="none", callbacks=[_Parts(parts)], validate=examples(6, seed=1)
    )
    calls = parts[0].calls
    assert calls > 2
    assert [(part.step, part.done) for part in parts] == [
        (step, done) for step in range(1, 13) for done in range(1, calls)
    ]
    for found in (nothing, parameters):
        assert_equal_bits(found, straight[1])
