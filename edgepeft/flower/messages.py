"""The messages of a round on Flower: an adapter with the settings of its round, and a device's answer.

Parameters travel as named float arrays, so that Flower's own mods (clipping, local noise) and strategies apply to them.
Neither side trusts the other's names, dtypes, shapes or bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from edgepeft.flower.errors import ClientError
from edgepeft_runtime.bundle.adapter_source import load_adapter
from edgepeft_runtime.bundle.bundle import Bundle, checked_parameters
from edgepeft_runtime.bundle.specs import ParameterSpec
from edgepeft_runtime.engine.evaluate import Evaluation
from edgepeft_runtime.errors import (
    BadSetting,
    EdgepeftError,
    ForeignRound,
    NotAnUpdate,
    UpdateError,
    WrongHash,
    WrongTensors,
)
from edgepeft_runtime.files.npy import read_npy
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.shown import quoted, shortened
from edgepeft_runtime.train.update import Update

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
"""The names of a message's records that Flower's strategies expect."""

BASE, ADAPTER, RUNTIME = "base-sha256", "adapter-sha256", "runtime"
EXAMPLES, STEPS, LOSS_BEFORE, LOSS_AFTER = "num-examples", "steps", "loss-before", "loss-after"
LOSS, ACCURACY = "loss", "accuracy"

REFUSED = 1000
"""The code of our errors among Flower's."""

_NPY_HEADER = 1024
"""Largest number of bytes that ``.npy`` needs in addition to the values of an array."""


@dataclass(frozen=True)
class Training:
    """How devices train in a round: settings of ``edgepeft_runtime.Trainer.fit``, sent with the adapter.

    Attributes:
        epochs, batch_size, accumulate, schedule, warmup: As for ``fit``.
        lr: Highest learning rate; ``None``: the bundle's.
        max_steps: Largest number of optimizer steps; ``None``: no limit.
        seed: Seed of the shuffling, to which the strategy adds the round's number.
    """

    epochs: int = 1
    batch_size: int = 8
    accumulate: int = 1
    lr: float | None = None
    schedule: str = "constant"
    warmup: int | float = 0
    max_steps: int | None = None
    seed: int = 0

    def to_config(self) -> dict[str, int | float | str]:
        """Return the settings as a ``ConfigRecord`` accepts them, without those that are ``None``."""
        return {_key(name): value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Training:
        """Return the inverse of ``to_config``. Other keys are ignored, since Flower has some of its own.

        Raises:
            TrainingError: A setting is of the wrong type. Ranges are checked by ``fit``.
        """
        settings = {name: config[_key(name)] for name in _KINDS if _key(name) in config}
        for name, value in settings.items():
            if not isinstance(value, _KINDS[name]) or isinstance(value, bool):
                raise BadSetting(_key(name), value, "a value of the type that Training has")
        return cls(**settings)


_KINDS: Mapping[str, type | tuple[type, ...]] = {
    **{field.name: int for field in fields(Training)},
    "lr": (int, float),
    "warmup": (int, float),
    "schedule": str,
}


def _key(name: str) -> str:
    return name.replace("_", "-")


def round_config(bundle: Bundle, training: Training) -> ConfigRecord:
    """Return the settings of a round for the ``train_config`` of any of Flower's strategies.

    ``AdapterStrategy`` sends them by itself.
    """
    return ConfigRecord({BASE: bundle.base_sha256, **training.to_config()})


@dataclass(frozen=True)
class Call:
    """A server's request: parameters to start from, their hash, and the settings of the round."""

    adapter: dict[str, Array]
    adapter_sha256: str
    training: Training


def read_call(message: Message, bundle: Bundle) -> Call:
    """Parse a server's request, and check that it belongs to the bundle.

    Raises:
        FleetError: It is for another base (``foreign-round``), was changed in transit (``wrong-hash``), is not a
            request, or its parameters do not fit the bundle.
        TrainingError: A setting is of the wrong type.
    """
    records, config = _single(message), _config(message)
    if config.get(BASE) != bundle.base_sha256:
        raise ForeignRound(
            "The round belongs to another bundle.",
            context=f"base of the round {config.get(BASE)}\nbase of the bundle {bundle.base_sha256}",
            hint="copy the bundle of this fleet to the device.",
        )
    tensors = read_arrays(records, bundle.manifest.parameters, "The round")
    adapter = checked_parameters(tensors, bundle.manifest, "The round")
    _, digest = load_adapter(bundle, adapter)
    if config.get(ADAPTER, digest) != digest:
        facts = f"its SHA-256 is {digest}, and it should be {config[ADAPTER]}"
        raise WrongHash("The adapter is not the one that the round names.", context=facts, hint=None)
    return Call(adapter, digest, Training.from_config(config))


def update_reply(update: Update, message: Message) -> Message:
    """Return a device's answer: its parameters, their metrics, and the hashes of the base and adapter."""
    losses = ((LOSS_BEFORE, update.loss_before), (LOSS_AFTER, update.loss_after))
    finite = {name: loss for name, loss in losses if loss is not None and math.isfinite(loss)}
    origin = {BASE: update.base_sha256, ADAPTER: update.adapter_sha256, RUNTIME: update.runtime}
    content = {
        ARRAYS: to_record(update.parameters),
        METRICS: MetricRecord({EXAMPLES: update.num_examples, STEPS: update.steps, **finite}),
        CONFIG: ConfigRecord(origin),
    }
    return Message(RecordDict(content), reply_to=message)


def read_update_reply(reply: Message, bundle: Bundle) -> Update:
    """Return the update in a device's answer, not yet checked against the round; the provenance is the bundle's.

    Raises:
        UpdateError: The device has refused or failed, or its answer is invalid.
    """
    check_answered(reply)
    content, config = _single(reply), _config(reply)
    metrics = _metrics(reply)
    return Update(
        parameters=read_arrays(content, bundle.manifest.parameters, "The update"),
        base_sha256=str(config.get(BASE)),
        adapter_sha256=str(config.get(ADAPTER)),
        provenance=bundle.manifest.provenance,
        num_examples=_natural(metrics, EXAMPLES),
        steps=_natural(metrics, STEPS),
        loss_before=_number(metrics, LOSS_BEFORE),
        loss_after=_number(metrics, LOSS_AFTER),
        runtime=str(config.get(RUNTIME, "")),
    )


def evaluation_reply(evaluation: Evaluation, message: Message) -> Message:
    """Return a device's answer to a request to evaluate."""
    accuracy = {} if evaluation.accuracy is None else {ACCURACY: evaluation.accuracy}
    metrics = MetricRecord({EXAMPLES: evaluation.examples, LOSS: evaluation.loss, **accuracy})
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


def read_evaluation_reply(reply: Message) -> Evaluation:
    """Return the inverse of ``evaluation_reply``.

    Raises:
        UpdateError: The device has refused or failed, or its numbers are out of range.
    """
    check_answered(reply)
    metrics = _metrics(reply)
    loss, accuracy, examples = _number(metrics, LOSS), _number(metrics, ACCURACY), _natural(metrics, EXAMPLES)
    if loss is None or examples == 0 or not 0 <= (accuracy or 0.0) <= 1:
        raise _not_an_answer(f"loss {loss}, accuracy {accuracy}, {examples} examples")
    return Evaluation(loss, accuracy, examples)


def to_record(parameters: Mapping[str, Array]) -> ArrayRecord:
    """Return named arrays as Flower sends them."""
    return ArrayRecord({name: FlowerArray(np.asarray(array, order="C")) for name, array in parameters.items()})


def read_arrays(record: ArrayRecord, specs: Sequence[ParameterSpec], source: str) -> dict[str, Array]:
    """Return the arrays of a record, in the machine's byte order; names, shapes and dtypes are not checked yet.

    Raises:
        WrongTensors: An array is larger than its parameter, or is not numeric.
    """
    sizes = {spec.name: math.prod(spec.sizes) * np.dtype(spec.dtype).itemsize for spec in specs}
    return {name: _array(name, array, sizes.get(name, 0), source) for name, array in record.items()}


def _array(name: str, array: FlowerArray, size: int, source: str) -> Array:
    try:
        if array.stype != "numpy.ndarray" or len(array.data) > size + _NPY_HEADER:
            raise ValueError(f"{array.stype} of {len(array.data)} bytes; at most {size + _NPY_HEADER} are accepted")
        loaded = read_npy(BytesIO(array.data), len(array.data))
        return loaded.astype(loaded.dtype.newbyteorder("="), order="C", copy=False)
    except ValueError as failure:
        raise WrongTensors(
            f"{source} contains an array that cannot be read.",
            context=f"tensor {quoted(name)}: {failure}",
            hint="send only numeric arrays, of the bundle's parameters.",
        ) from None


def error_reply(error: EdgepeftError, message: Message) -> Message:
    """Return an error as a device's answer, its code first."""
    text = error.message if error.context is None else f"{error.message} {error.context}"
    return Message(Error(REFUSED, f"{error.code}: {text}".replace("\n", "; ")), reply_to=message)


def check_answered(reply: Message) -> None:
    """Check that an answer is not an error.

    Raises:
        EdgepeftError: The device has sent a known code; the error is of its class.
        ClientError: The device has failed, or sends another code.
    """
    if not reply.has_error():
        return
    code, _, reason = reply.error.reason.partition(": ")
    cause = EdgepeftError.catalogue.get(code) if reply.error.code == REFUSED else None
    context = reply.error.reason if cause is None else reason
    raise (cause or ClientError).said("The node has no result.", context=shortened(context, 500))


def _single(message: Message) -> ArrayRecord:
    """Return the only record of arrays in a message."""
    records = list(message.content.array_records.values())
    if len(records) != 1:
        facts = f"it contains {len(records)} records of arrays instead of one"
        raise NotAnUpdate("The message contains no adapter.", context=facts, hint=None)
    return records[0]


def _config(message: Message) -> Mapping[str, object]:
    return next(iter(message.content.config_records.values()), {})


def _metrics(reply: Message) -> Mapping[str, object]:
    return next(iter(reply.content.metric_records.values()), {})


def _natural(metrics: Mapping[str, object], name: str) -> int:
    value = metrics.get(name)
    if not isinstance(value, int) or not 0 <= value < 2**53:
        raise _not_an_answer(f"{name} is {quoted(value)}")
    return value


def _number(metrics: Mapping[str, object], name: str) -> float | None:
    value = metrics.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise _not_an_answer(f"{name} is {quoted(value)}")
    return float(value)


def _not_an_answer(context: str) -> UpdateError:
    return NotAnUpdate("The device's answer is invalid.", context=context, hint=None)
