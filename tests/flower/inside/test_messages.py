"""Messages arrive as they were sent, and anything but numbers is refused."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from edgepeft.flower import messages
from edgepeft.flower.messages import Training
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.specs import ParameterSpec
from edgepeft_runtime.engine.evaluate import Evaluation
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.train.update import Update
from tests.flower.inside.devices import over_the_wire

SPECS = (ParameterSpec("w", "float32", (2, 3), "other"), ParameterSpec("s", "float32", (), "other"))


def _call(record: RecordDict) -> Message:
    return over_the_wire(Message(record, 5, "train"))


def _asked(bundle: Bundle, **config: Any) -> Message:
    terms = {**messages.round_config(bundle, Training(epochs=3, lr=0.5, warmup=0.25)), **config}
    record = {"arrays": messages.to_record(bundle.adapter()), "config": ConfigRecord(terms)}
    return _call(RecordDict(record))


def test_a_call_arrives_as_it_was_sent(bundle: Bundle) -> None:
    """The adapter to the bit, its hash, and the terms; keys of others are left alone."""
    call = messages.read_call(_asked(bundle, **{"server-round": 7}), bundle)
    assert {name: array.tobytes() for name, array in call.adapter.items()} == {
        name: array.tobytes() for name, array in bundle.adapter().items()
    }
    assert call.adapter_sha256 == bundle.adapter_sha256
    assert call.training == Training(epochs=3, lr=0.5, warmup=0.25)


def test_an_update_arrives_as_it_was_sent(bundle: Bundle) -> None:
    """Every field of it; a loss that is not known stays unknown, and the provenance is the server's own."""
    message = _asked(bundle)
    for losses in ((0.5, 0.25), (None, None), (float("nan"), 1.0)):
        sent = Update(bundle.adapter(), bundle.base_sha256, "a" * 64, {}, 40, 5, *losses, "somewhere")
        found = messages.read_update_reply(over_the_wire(messages.update_reply(sent, message)), bundle)
        assert all(found.parameters[name].tobytes() == array.tobytes() for name, array in sent.parameters.items())
        assert (found.base_sha256, found.adapter_sha256, found.runtime) == (bundle.base_sha256, "a" * 64, "somewhere")
        assert (found.num_examples, found.steps, found.provenance) == (40, 5, bundle.manifest.provenance)
        assert (found.loss_before, found.loss_after) == tuple(loss if loss == loss else None for loss in losses)


@pytest.mark.parametrize("accuracy", [None, 0.75])
def test_an_evaluation_arrives_as_it_was_sent(bundle: Bundle, accuracy: float | None) -> None:
    """With and without an accuracy."""
    sent = Evaluation(0.5, accuracy, 12)
    reply = over_the_wire(messages.evaluation_reply(sent, _asked(bundle)))
    assert messages.read_evaluation_reply(reply) == sent


def test_scalars_orders_and_byte_orders_are_kept() -> None:
    """A scalar stays one; an array in Fortran's order, or of another machine's bytes, has the same values."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for array in (values, np.asfortranarray(values), values.astype(">f4")):
        record = messages.to_record({"w": array, "s": np.asarray(2.0, np.float32)})
        found = messages.read_arrays(record, SPECS, "The update")
        assert found["w"].dtype == np.float32 and found["w"].flags.c_contiguous
        assert np.array_equal(found["w"], values)
        assert found["s"].shape == () and found["s"] == 2.0


def _saved(array: Any, **how: Any) -> bytes:
    file = BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


def _archive() -> bytes:
    file = BytesIO()
    np.savez(file, w=np.zeros(2))
    return file.getvalue()


def _claims(shape: tuple[int, ...]) -> bytes:
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(24)


GOOD = _saved(np.zeros((2, 3), np.float32))
DAMAGED: dict[str, bytes] = {
    "cut": GOOD[:-1],
    "empty": b"",
    "pickled": _saved(np.array([{"a": 1}], object), allow_pickle=True),
    "archive": _archive(),
    "no header": b"\x93NUMPY\x01\x00",
    "no literal": GOOD.replace(b"(2, 3)", b"(((((("),
    "claims gigabytes": _claims((2**33,)),
    "claims terabytes": _claims((2**40, 2)),
    "claims a negative size": _claims((-2, 3)),
    "too large": _saved(np.zeros(4096, np.float32)),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_is_no_array_of_numbers_is_refused(damage: str) -> None:
    """Damaged, pickled, compressed, incomplete or too large messages: one code, and nothing is executed."""
    record = ArrayRecord({"w": Array("float32", (2, 3), "numpy.ndarray", DAMAGED[damage])})
    with pytest.raises(EdgepeftError) as caught:
        messages.read_arrays(record, SPECS, "The update")
    assert caught.value.code == "wrong-tensors"


def test_an_array_of_another_framework_is_refused() -> None:
    """Content that is not in numpy's format is not parsed."""
    record = ArrayRecord({"w": Array("float32", (2, 3), "torch.Tensor", GOOD)})
    with pytest.raises(EdgepeftError, match="torch"):
        messages.read_arrays(record, SPECS, "The update")


def _lone(bundle: Bundle, name: str) -> Message:
    """A call with one of its two records."""
    return _call(RecordDict({name: _asked(bundle).content[name]}))


WRONG: dict[str, tuple[Callable[[Bundle], Message], str]] = {
    "another base": (lambda bundle: _asked(bundle, **{"base-sha256": "0" * 64}), "foreign-round"),
    "no base": (lambda bundle: _lone(bundle, "arrays"), "foreign-round"),
    "another adapter": (lambda bundle: _asked(bundle, **{"adapter-sha256": "0" * 64}), "wrong-hash"),
    "no adapter": (lambda bundle: _lone(bundle, "config"), "not-an-update"),
    "text for a number": (lambda bundle: _asked(bundle, epochs="many"), "bad-setting"),
    "a number for text": (lambda bundle: _asked(bundle, schedule=3), "bad-setting"),
    "a flag for a number": (lambda bundle: _asked(bundle, epochs=True), "bad-setting"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_call_is_refused_by_the_device(what: str, bundle: Bundle) -> None:
    """Each has the code of its problem."""
    make, code = WRONG[what]
    with pytest.raises(EdgepeftError) as caught:
        messages.read_call(make(bundle), bundle)
    assert caught.value.code == code
