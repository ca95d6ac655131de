"""What trains on x86-64 trains on a Raspberry Pi: stock wheels, the same losses, by emulation."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.instructions.__main__ import SCRIPT as ON_BOARD
from benchmarks.instructions.emulator import install as install_counter
from edgepeft_runtime import Bundle, Trainer, check_update, read_update
from tests.aarch64.board import CPUS, Board, install
from tests.aarch64.cases import FP32, Case, Difference, compare, golden, small_int8
from tests.aarch64.debian import Unavailable
from tests.support.bundles import Trained

pytestmark = [
    pytest.mark.aarch64,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="QEMU emulates another processor on Linux alone."),
]


@pytest.fixture(scope="module", params=CPUS)
def board(request: pytest.FixtureRequest) -> Board:
    """A Raspberry Pi's processor, and all that the runtime needs on it."""
    try:
        return install(request.param)
    except Unavailable as reason:
        pytest.skip(f"No emulated board: {reason}")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return [golden(), small_int8(tmp_path_factory.mktemp("int8"))]


@pytest.fixture(scope="module")
def differences(
    board: Board, cases: list[Case], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Case, Difference]]:
    found = compare(board.python, cases, tmp_path_factory.mktemp("compare") / board.cpu)
    return {case.name: (case, difference) for case, difference in zip(cases, found, strict=True)}


def test_the_golden_bundle_trains_as_on_x86_64(differences: dict[str, tuple[Case, Difference]]) -> None:
    """Losses, evaluation and predictions are PyTorch's, and the update is that of x86-64, each within 1e-5."""
    case, difference = differences["golden, fp32"]
    assert case.bound == FP32 == 1e-5
    assert max(difference.losses, difference.evaluation, difference.outputs, difference.update) <= FP32


def test_an_int8_base_trains_as_on_x86_64(differences: dict[str, tuple[Case, Difference]]) -> None:
    """Forward and backward in integers, the losses of 20 steps stay within the bound."""
    case, difference = differences["small BERT, int8"]
    assert difference.losses <= case.bound
    assert difference.evaluation <= case.bound


def test_the_command_trains_from_text(board: Board, text: Trained, tmp_path: Path) -> None:
    """``edgepeft train`` ends by its limit with exit code 75, resumes when called again, and writes an update."""
    rows = [f"a {word} film,{label}" for word, label in (("good", "yes"), ("bad", "no"), ("fine", "yes"))] * 8
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *rows]))
    train = ["train", str(text.bundle), "--data", "reviews.csv", "--state", "state", "--update", "update"]
    train += ["--epochs", "2"]
    calls = [([*train, "--max-minutes", "1e-6"], 75), (train, 0)]
    lines = [f"assert run({arguments}) == {code}" for arguments, code in calls]
    board.python("-c", "\n".join(["from edgepeft.cli.app import run", *lines]), cwd=tmp_path)
    update = read_update(tmp_path / "update")
    check_update(update, Bundle.open(text.bundle))
    assert update.steps == 6
    assert update.loss_before is not None and update.loss_after is not None
    assert update.loss_after < update.loss_before
    with Trainer.open(text.bundle, state=tmp_path / "state") as trainer:  # the run from there resumes here
        assert trainer.steps == 6


def test_instructions_between_two_marks_are_counted(tmp_path: Path) -> None:
    """Twice the work takes about twice the instructions: what Python does beside it varies, and is little."""
    try:
        counting = install_counter("cortex-a76", tmp_path / "marks")
    except Unavailable as reason:
        pytest.skip(f"No emulator that counts: {reason}")
    counts = []
    for size in (1_000_000, 2_000_000):
        script = f"from on_board import marked; marked(lambda: sum(range({size})))"
        counting.python("-c", script, cwd=ON_BOARD.parent)
        first, last = (int(line.split()[1]) for line in (tmp_path / "marks").read_text("ascii").splitlines())
        counts.append(last - first)
    assert counts[0] > 1_000_000
    assert counts[1] / counts[0] == pytest.approx(2, rel=0.1)


def test_where_it_cannot_be_installed_the_reason_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without Debian's tools the error says so, and nothing half installed remains."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="dpkg is not on this machine"):
        install("cortex-a76", tmp_path / "board")
    assert not (tmp_path / "board").exists()
