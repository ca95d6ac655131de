"""The server's strategy has the results of `edgepeft aggregate`, and no node can end a round."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from edgepeft.aggregation import AggregationSettings, Privacy, Robust, aggregate
from edgepeft.flower import messages
from edgepeft.flower.client import client_app
from edgepeft.flower.messages import Training
from edgepeft.flower.strategy import AdapterStrategy
from edgepeft_runtime import read_tensors
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.train.update import read_update
from tests.flower.inside.devices import Data, Devices, ask, over_the_wire, shares

TRAINING = Training(epochs=1, batch_size=4, lr=0.01)
SETTINGS = [
    AggregationSettings(),
    AggregationSettings(weights="examples", examples_cap=5),
    AggregationSettings(rule="svd", clip=0.05),
    AggregationSettings(robust=Robust("median")),
    AggregationSettings(robust=Robust("trimmed-mean", 0.2), clip=0.05),
    AggregationSettings(clip=0.05, privacy=Privacy(0.1, seed=1)),
]


def _app(bundle: Bundle, examples: Data, count: int) -> Any:
    parts = shares(examples, count)
    return client_app(bundle.path, lambda context: parts[context.node_id], threads=1)


def _replies(strategy: AdapterStrategy, bundle: Bundle, examples: Data, count: int) -> list[Message]:
    """The devices' replies to the strategy's call, by their numbers, as Flower calls them in any order."""
    devices = Devices(_app(bundle, examples, count), count)
    arrays = messages.to_record(strategy.adapter())
    calls = strategy.configure_train(1, arrays, ConfigRecord(), devices)  # type: ignore[arg-type]
    return sorted(devices.send_and_receive(calls), key=lambda reply: reply.metadata.src_node_id)


def _bits(tensors: Any) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in tensors.items()}


def _taken(record: ArrayRecord | None, bundle: Bundle) -> dict[str, bytes]:
    assert record is not None
    return _bits(messages.read_arrays(record, bundle.manifest.parameters, "The round"))


def _report(strategy: AdapterStrategy, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((strategy.rounds.folder(number) / "adapter.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize(
    "settings", SETTINGS, ids=lambda settings: f"{settings.rule}-{settings.robust}-{settings.clip}"
)
def test_a_round_is_what_aggregate_makes_of_its_updates(
    settings: AggregationSettings, bundle: Bundle, examples: Data, tmp_path: Path
) -> None:
    """To the bit, from the files that the round leaves; the order of the answers does not matter."""
    strategy = AdapterStrategy(bundle, tmp_path / "rounds", settings=settings, training=TRAINING)
    replies = _replies(strategy, bundle, examples, 6)
    arrays, metrics = strategy.aggregate_train(1, replies[::-1])
    folder = strategy.rounds.folder(1)
    start = read_tensors(folder / "start.safetensors").tensors
    expected = aggregate(bundle, sorted(folder.glob("updates/*")), adapter=start, **vars(settings))
    assert len(expected.report.updates) == 6
    assert (
        _taken(arrays, bundle)
        == _bits(expected.parameters)
        == _bits(read_update(folder / "adapter.safetensors").parameters)
    )
    assert _report(strategy, 1)["updates"] == json.loads(expected.report.to_json())["updates"]
    assert metrics is not None and (metrics["updates"], metrics["refused"], metrics["kept"]) == (6, 0, 0)


def test_the_command_resumes_a_round(bundle: Bundle, examples: Data, tmp_path: Path) -> None:
    """`edgepeft aggregate` on the folder gives the same adapter once more."""
    strategy = AdapterStrategy(bundle, tmp_path / "rounds", training=TRAINING)
    strategy.aggregate_train(1, _replies(strategy, bundle, examples, 3))
    folder = strategy.rounds.folder(1)
    command = [sys.executable, "-m", "edgepeft", "aggregate", folder / "updates", "--bundle", bundle.path]
    options = ["--adapter", folder / "start.safetensors", "--out", tmp_path / "again.safetensors"]
    subprocess.run([*map(str, [*command, *options])], check=True, capture_output=True)
    assert (tmp_path / "again.safetensors").read_bytes() == (folder / "adapter.safetensors").read_bytes()


def test_one_device_gets_its_own_adapter_back(bundle: Bundle, examples: Data, tmp_path: Path) -> None:
    """To the bit."""
    strategy = AdapterStrategy(bundle, tmp_path, training=TRAINING, min_train_nodes=1, min_available_nodes=1)
    (reply,) = _replies(strategy, bundle, examples, 1)
    own = messages.read_update_reply(reply, bundle).parameters
    assert _taken(strategy.aggregate_train(1, [reply])[0], bundle) == _bits(own)


def test_frozen_halves_are_asked_for_under_ffa(bundle: Bundle, examples: Data, tmp_path: Path) -> None:
    """Devices that have changed A are refused; as none remains, the round keeps its adapter and reports it."""
    strategy = AdapterStrategy(bundle, tmp_path, settings=AggregationSettings(rule="ffa"), training=TRAINING)
    arrays, _ = strategy.aggregate_train(1, _replies(strategy, bundle, examples, 2))
    report = _report(strategy, 1)
    assert arrays is None and report["kept"] == "no-updates" and "non-trainable-changed" in report["reason"]


def _changed(reply: Message, **changes: Any) -> Message:
    """An answer with other records, as a bad node may send it."""
    records = {**dict(reply.content), **changes}
    kept = RecordDict({name: record for name, record in records.items() if record is not None})
    return over_the_wire(Message(kept, metadata=reply.metadata))


def _arrays(reply: Message, change: Callable[[dict[str, np.ndarray]], None]) -> Message:
    arrays = {name: array.numpy().copy() for name, array in reply.content["arrays"].items()}  # type: ignore[union-attr]
    change(arrays)
    return _changed(reply, arrays=messages.to_record(arrays))


def _first(value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        next(iter(arrays.values())).flat[0] = value

    return change


def _flat(arrays: dict[str, np.ndarray]) -> None:
    name = next(iter(arrays))
    arrays[name] = arrays[name].reshape(-1)


def _double(arrays: dict[str, np.ndarray]) -> None:
    name = next(iter(arrays))
    arrays[name] = arrays[name].astype(np.float64)


def _config(reply: Message, **values: str) -> Message:
    return _changed(reply, config=ConfigRecord({**reply.content["config"], **values}))  # type: ignore[dict-item]


def _metrics(reply: Message, **values: Any) -> Message:
    given = {name.replace("_", "-"): value for name, value in values.items()}
    return _changed(reply, metrics=MetricRecord({**reply.content["metrics"], **given}))  # type: ignore[dict-item]


BAD: dict[str, tuple[Callable[[Message], Message], str]] = {
    "NaN": (lambda reply: _arrays(reply, _first(np.nan)), "not-finite"),
    "infinity": (lambda reply: _arrays(reply, _first(np.inf)), "not-finite"),
    "a huge value": (lambda reply: _arrays(reply, _first(1e6)), "norm-too-large"),
    "another shape": (lambda reply: _arrays(reply, _flat), "wrong-tensors"),
    "another dtype": (lambda reply: _arrays(reply, _double), "wrong-tensors"),
    "a tensor less": (lambda reply: _arrays(reply, lambda arrays: arrays.popitem() and None), "wrong-tensors"),
    "a tensor more": (lambda reply: _arrays(reply, lambda arrays: arrays.update(more=np.zeros(2))), "wrong-tensors"),
    "another base": (lambda reply: _config(reply, **{"base-sha256": "0" * 64}), "foreign-update"),
    "another round": (lambda reply: _config(reply, **{"adapter-sha256": "0" * 64}), "stale-update"),
    "no origin": (lambda reply: _changed(reply, config=None), "foreign-update"),
    "no arrays": (lambda reply: _changed(reply, arrays=None), "not-an-update"),
    "no metrics": (lambda reply: _changed(reply, metrics=None), "not-an-update"),
    "two adapters": (lambda reply: _changed(reply, second=reply.content["arrays"]), "not-an-update"),
    "less than no examples": (lambda reply: _metrics(reply, num_examples=-1), "not-an-update"),
    "half an example": (lambda reply: _metrics(reply, num_examples=0.5), "not-an-update"),
    "a loss that is none": (lambda reply: _metrics(reply, loss_after=float("nan")), "not-an-update"),
    "a list of losses": (lambda reply: _metrics(reply, loss_after=[1.0]), "not-an-update"),
}  # fmt: skip


@pytest.fixture(scope="module")
def four(
    bundle: Bundle, examples: Data, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Message], dict[str, bytes]]:
    """The replies of four nodes, and the result of the first three."""
    strategy = AdapterStrategy(bundle, tmp_path_factory.mktemp("three"), training=TRAINING)
    replies = _replies(strategy, bundle, examples, 4)
    return replies, _taken(strategy.aggregate_train(1, replies[:3])[0], bundle)


@pytest.mark.parametrize("what", BAD)
def test_a_bad_answer_does_not_count(
    what: str, bundle: Bundle, four: tuple[list[Message], dict[str, bytes]], tmp_path: Path
) -> None:
    """It is refused by the name of its node, with a code; the round is that of the others, to the bit."""
    change, reference = BAD[what]
    replies, good = four
    strategy = AdapterStrategy(bundle, tmp_path, training=TRAINING, max_norm=100.0)
    strategy.configure_train(1, messages.to_record(strategy.adapter()), ConfigRecord(), Devices(None, 4))  # type: ignore[arg-type]
    arrays, _ = strategy.aggregate_train(1, [*replies[:3], change(replies[3])])
    refused = _report(strategy, 1)["refused"]
    assert [(entry["source"], entry["code"]) for entry in refused] == [("3", reference)]
    assert _taken(arrays, bundle) == good


def test_a_node_counts_once(bundle: Bundle, examples: Data, tmp_path: Path) -> None:
    """A second answer, with other values, is refused."""
    strategy = AdapterStrategy(bundle, tmp_path, training=TRAINING)
    replies = _replies(strategy, bundle, examples, 2)
    strategy.aggregate_train(1, [*replies, _arrays(replies[0], _first(0.5))])
    assert [entry["code"] for entry in _report(strategy, 1)["refused"]] == ["second-answer"]


def test_a_device_that_fails_is_named(bundle: Bundle, examples: Data, tmp_path: Path) -> None:
    """Our errors keep their code, a crash of the app has Flower's; the others count."""
    strategy = AdapterStrategy(bundle, tmp_path, training=TRAINING)
    devices = Devices(_app(bundle, examples, 2), 2)
    good, call = list(strategy.configure_train(1, messages.to_record(strategy.adapter()), ConfigRecord(), devices))  # type: ignore[arg-type]

    def crashed(_: object) -> Data:
        raise RuntimeError("no camera")

    answers = [ask(devices.app, good), ask(client_app(bundle.path, lambda _: {}), call)]
    strategy.aggregate_train(1, [*answers, ask(client_app(bundle.path, crashed), call)])
    refused = _report(strategy, 1)["refused"]
    assert [entry["code"] for entry in refused] == ["no-data", "client-error"]
    assert "no camera" in refused[1]["reason"]


@pytest.mark.parametrize("answers", [0, 1])
def test_too_few_answers_keep_the_adapter(answers: int, bundle: Bundle, examples: Data, tmp_path: Path) -> None:
    """None at all, or fewer than asked for: the round is closed without a result, and the next starts where it did."""
    strategy = AdapterStrategy(bundle, tmp_path, training=TRAINING, min_updates=2)
    arrays, metrics = strategy.aggregate_train(1, _replies(strategy, bundle, examples, 2)[:answers])
    assert arrays is None and metrics is not None and metrics["kept"] == 1
    assert _report(strategy, 1)["kept"] == ("too-few-updates" if answers else "no-updates")
    assert not (strategy.rounds.folder(1) / "adapter.safetensors").exists()
    assert (strategy.rounds.last, strategy.rounds.adapter()) == (1, None)
    assert _bits(AdapterStrategy(bundle, tmp_path).adapter()) == _bits(bundle.adapter())


def test_a_round_that_makes_held_out_data_worse_is_not_accepted(bundle: Bundle, examples: Data, tmp_path: Path) -> None:
    """Also if the loss is NaN. Its report stays, with all participants."""
    for name, factor in (("worse", -200.0), ("overflow", 1e18)):
        strategy = AdapterStrategy(bundle, tmp_path / name, training=TRAINING, held_out=examples)
        start = strategy.adapter()

        def spoil(arrays: dict[str, np.ndarray], start: Any = start, factor: float = factor) -> None:
            for key, array in arrays.items():
                arrays[key] = (start[key] + factor * (array - start[key])).astype(np.float32)

        replies = [_arrays(reply, spoil) for reply in _replies(strategy, bundle, examples, 3)]
        arrays, metrics = strategy.aggregate_train(1, replies)
        report = _report(strategy, 1)
        assert arrays is None and metrics is not None and metrics["kept"] == 1
        assert report["kept"] == "worse-than-before" and not report["held_out"]["accepted"]
        assert len(report["updates"]) == 3 and strategy.rounds.adapter() is None


def test_nodes_evaluate_on_their_own_data(bundle: Bundle, examples: Data, tmp_path: Path) -> None:
    """The mean is weighted by examples up to a cap. Replies without valid metrics are left out."""
    parts = shares(examples, 3)
    app = client_app(bundle.path, lambda _: {}, held_out_for=lambda context: parts[context.node_id], threads=1)
    strategy = AdapterStrategy(bundle, tmp_path, fraction_evaluate=1.0, settings=AggregationSettings(examples_cap=10))
    devices = Devices(app, 3)
    arrays = messages.to_record(strategy.adapter())
    calls = strategy.configure_evaluate(1, arrays, ConfigRecord(), devices)  # type: ignore[arg-type]
    replies = devices.send_and_receive(calls)
    own = [messages.read_evaluation_reply(reply) for reply in replies]
    bad = [
        _metrics(replies[0], loss=float("inf")),
        _metrics(replies[0], accuracy=2.0),
        _changed(replies[0], metrics=None),
    ]
    found = strategy.aggregate_evaluate(1, [*replies, *bad])
    weights = [min(one.examples, 10) for one in own]
    assert found is not None and (found["nodes"], found["refused"]) == (3, 3)
    assert found["loss"] == pytest.approx(np.average([one.loss for one in own], weights=weights))
    assert found["accuracy"] == pytest.approx(np.average([one.accuracy or 0.0 for one in own], weights=weights))
    assert strategy.aggregate_evaluate(1, bad) is None


def test_settings_out_of_range_are_refused_at_once(bundle: Bundle, tmp_path: Path) -> None:
    """Before any node is asked."""
    wrong: list[dict[str, Any]] = [
        {"settings": AggregationSettings(rule="stack")},
        {"min_updates": 0},
        {"max_norm": 0.0},
    ]
    for how in wrong:
        with pytest.raises(EdgepeftError) as caught:
            AdapterStrategy(bundle, tmp_path, **how)
        assert caught.value.code == "bad-setting"


def test_a_training_seed_differs_from_round_to_round(bundle: Bundle, tmp_path: Path) -> None:
    """Devices do not go through their data in the same order each time."""
    strategy = AdapterStrategy(bundle, tmp_path, training=replace(TRAINING, seed=10))
    devices, arrays = Devices(client_app(bundle.path, lambda _: {}), 2), messages.to_record(strategy.adapter())
    calls = [next(iter(strategy.configure_train(number, arrays, ConfigRecord(), devices))) for number in (1, 2)]  # type: ignore[arg-type]
    found = [messages.read_call(call, bundle).training for call in calls]
    assert [asdict(training) for training in found] == [asdict(replace(TRAINING, seed=seed)) for seed in (11, 12)]
