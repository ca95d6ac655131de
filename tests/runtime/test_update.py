"""Updates: written by a trainer, refused by the host when they are damaged, foreign, stale or unfit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.numpy

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import (
    CannotReadFile,
    CannotWriteFile,
    EdgepeftError,
    TensorError,
    TensorFileError,
    UpdateError,
)
from edgepeft_runtime.files.tensorfile import read_tensors, sha256_of, write_tensors
from edgepeft_runtime.train.trainer import Trainer
from edgepeft_runtime.train.update import Update, check_update, read_update, write_update
from tests.support.damage import assert_equal_bits, mutated
from tests.support.tiny_bundle import build, examples


@pytest.fixture
def update(bundle: Path, tmp_path: Path) -> Path:
    """An update after three steps."""
    with Trainer.open(bundle) as trainer:
        for seed in range(3):
            trainer.step(examples(8, seed))
        return trainer.save_update(tmp_path / "update.safetensors")


def test_update_arrives_as_it_was_sent(bundle: Path, tmp_path: Path) -> None:
    """Parameters to the bit, and everything about them."""
    with Trainer.open(bundle) as trainer:
        losses = [trainer.step(examples(8, seed)) for seed in range(3)]
        found, parameters = read_update(trainer.save_update(tmp_path / "u")), trainer.parameters()
    opened = Bundle.open(bundle)
    check_update(found, opened)
    assert_equal_bits(found.parameters, parameters)
    assert found.provenance == opened.manifest.provenance
    assert (found.base_sha256, found.adapter_sha256) == (opened.base_sha256, opened.adapter_sha256)
    assert (found.num_examples, found.steps, found.loss_before, found.loss_after) == (24, 3, losses[0], losses[2])
    assert found.runtime.endswith(f"onnxruntime {onnxruntime.__version__}")
    assert write_update(tmp_path / "again", found).read_bytes() == (tmp_path / "u").read_bytes()


def test_official_library_reads_an_update(update: Path) -> None:
    """Any safetensors reader will do."""
    assert_equal_bits(
        dict(sorted(safetensors.numpy.load_file(update).items())), dict(sorted(read_update(update).parameters.items()))
    )


def test_update_without_training_is_possible(bundle: Path, tmp_path: Path) -> None:
    """Unknown losses are empty, not invented."""
    with Trainer.open(bundle) as trainer:
        found = read_update(trainer.save_update(tmp_path / "u"))
    assert (found.steps, found.loss_before, found.loss_after) == (0, None, None)


def test_every_byte_counts(update: Path) -> None:
    """A flip of any byte, and a cut at any byte, is refused."""
    whole = update.read_bytes()
    for offset in range(len(whole)):
        content = bytearray(whole)
        content[offset] ^= 0x10
        update.write_bytes(content)
        with pytest.raises(TensorFileError):
            read_update(update)
    for length in range(0, len(whole), 13):
        update.write_bytes(whole[:length])
        with pytest.raises(TensorFileError):
            read_update(update)


def test_random_damage_never_escapes(update: Path) -> None:
    """Reading a mutation returns the same update or raises an UpdateError."""
    whole, expected, rng = update.read_bytes(), read_update(update), np.random.default_rng(4)
    for _ in range(300):
        update.write_bytes(mutated(whole, rng))
        try:
            found = read_update(update)
        except EdgepeftError:
            continue
        assert_equal_bits(found.parameters, expected.parameters)
        assert replace(found, parameters={}) == replace(expected, parameters={})


def test_foreign_update_is_refused_with_both_bases(update: Path, tmp_path: Path) -> None:
    """It was trained on another model."""
    found, other = read_update(update), Bundle.open(build(tmp_path / "other", seed=9))
    with pytest.raises(UpdateError) as error:
        check_update(found, other)
    assert error.value.code == "foreign-update"
    assert found.base_sha256 in str(error.value.context)
    assert other.base_sha256 in str(error.value.context)


def test_stale_update_is_refused_with_both_adapters(bundle: Path, update: Path, tmp_path: Path) -> None:
    """A device that still trained from the last round's adapter; a run from a given adapter fits that adapter."""
    found, opened = read_update(update), Bundle.open(bundle)
    with pytest.raises(UpdateError) as error:
        check_update(found, opened, adapter_sha256="0" * 64)
    assert error.value.code == "stale-update"
    assert found.adapter_sha256 in str(error.value.context)
    adapter = tmp_path / "adapter.safetensors"
    write_tensors(adapter, found.parameters)
    for given in (adapter, found.parameters):
        with Trainer.open(bundle, adapter=given) as trainer:
            later = read_update(trainer.save_update(tmp_path / "later"))
        check_update(later, opened, adapter_sha256=sha256_of(adapter))
        with pytest.raises(UpdateError):
            check_update(later, opened)


def test_unfit_tensors_are_refused(bundle: Path, update: Path) -> None:
    """Missing, unknown, of another shape or dtype, or not finite."""
    found, opened = read_update(update), Bundle.open(bundle)
    bias = found.parameters["head.bias"]
    without = {name: array for name, array in found.parameters.items() if name != "head.bias"}
    cases = {
        "missing: head.bias": without,
        "unknown: more": {**found.parameters, "more": bias},
        "expected float32 [3], found float32 [1, 3]": {**without, "head.bias": bias[None]},
        "expected float32 [3], found float16 [3]": {**without, "head.bias": bias.astype(np.float16)},
        "at [1]: inf": {**without, "head.bias": np.array([0, np.inf, 0], np.float32)},
    }
    for fact, parameters in cases.items():
        with pytest.raises(TensorError) as error:
            check_update(replace(found, parameters=parameters), opened)
        assert fact in str(error.value.context)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "pickle"),
        ("version", "1"),
        ("num_examples", "-1"),
        ("steps", "1.5"),
        ("steps", "٣"),
        ("loss_after", "nan"),
        ("loss_before", "low"),
        ("provenance", "[]"),
        ("provenance", "{"),
        ("runtime", None),
        ("base_sha256", None),
    ],
)
def test_whole_file_that_is_no_update_is_refused(key: str, value: str | None, update: Path) -> None:
    """The digest proves that the file is whole, not that it is valid."""
    file = read_tensors(update)
    metadata = {**file.metadata, key: value}
    del metadata["digest"]
    write_tensors(update, file.tensors, {k: v for k, v in metadata.items() if v is not None}, digest=True)
    with pytest.raises(UpdateError) as error:
        read_update(update)
    assert error.value.code == "not-an-update"


def test_losses_keep_all_their_digits(bundle: Path, tmp_path: Path) -> None:
    """A loss is written so that the same number is read; one that is not finite is unknown."""
    plain = Update(Bundle.open(bundle).adapter(), "0" * 64, "1" * 64, loss_before=0.1 + 0.2, loss_after=float("inf"))
    found = read_update(write_update(tmp_path / "u", plain))
    assert (found.loss_before, found.loss_after) == (0.1 + 0.2, None)


def test_missing_and_unwritable_paths_are_refused(bundle: Path, tmp_path: Path) -> None:
    """Not a traceback."""
    with pytest.raises(CannotReadFile):
        read_update(tmp_path / "none")
    with Trainer.open(bundle) as trainer, pytest.raises(CannotWriteFile, match="Cannot write"):
        trainer.save_update(tmp_path / "none" / "update")
