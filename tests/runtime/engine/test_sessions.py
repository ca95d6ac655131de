"""The options of sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepeft_runtime.engine import sessions
from edgepeft_runtime.train.trainer import Trainer
from tests.support.tiny_bundle import examples

PACKING = "session.disable_prepacking"


def test_large_weights_are_not_packed_a_second_time(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the threshold sessions make no copies of constants, and a step is the same, up to rounding."""
    with pytest.raises(RuntimeError):  # there is no such entry
        sessions.session_options(1, sessions.LARGE_WEIGHTS - 1).get_session_config_entry(PACKING)
    losses = []
    for large in (sessions.LARGE_WEIGHTS, 1):
        monkeypatch.setattr(sessions, "LARGE_WEIGHTS", large)
        with Trainer.open(bundle) as trainer:
            losses.append([trainer.step(examples(8)) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert sessions.session_options(1, 1).get_session_config_entry(PACKING) == "1"


def test_threads_of_a_session_do_not_spin_after_its_run() -> None:
    """Otherwise they would take a core from the session that runs next."""
    assert sessions.session_options(2).get_session_config_entry("session.force_spinning_stop") == "1"
