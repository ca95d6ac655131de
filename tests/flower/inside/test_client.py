"""A device on Flower works like one without Flower, and reports why if it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp.strategy import FedAvg

from edgepeft.flower import messages
from edgepeft.flower.client import client_app
from edgepeft.flower.messages import Training
from edgepeft_runtime import Limits, Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.train.update import check_update
from tests.flower.inside.devices import Data, Devices, ask, shares

TRAINING = Training(epochs=2, batch_size=8, lr=0.01, schedule="cosine", warmup=0.1, seed=3)


def _message(bundle: Bundle, adapter: dict[str, Array] | None = None, kind: str = "train", **config: object) -> Message:
    terms = ConfigRecord({**messages.round_config(bundle, TRAINING), **config})  # type: ignore[dict-item]
    arrays = messages.to_record(bundle.adapter() if adapter is None else adapter)
    return Message(RecordDict({"arrays": arrays, "config": terms}), 5, kind)


@pytest.fixture
def app(bundle: Bundle, examples: Data) -> ClientApp:
    return client_app(bundle.path, lambda _: examples, threads=1)


def test_it_trains_as_a_trainer_does(bundle: Bundle, examples: Data, app: ClientApp) -> None:
    """Bit-identical parameters and the metadata of an update, from an adapter other than the bundle's."""
    start = {name: array + np.float32(0.01) for name, array in bundle.adapter().items()}
    found = messages.read_update_reply(ask(app, _message(bundle, start)), bundle)
    with Trainer.open(bundle, adapter=start, seed=3, threads=1) as trainer:
        trainer.fit(examples, epochs=2, batch_size=8, lr=0.01, schedule="cosine", warmup=0.1)
        expected = trainer.update()
    assert {n: a.tobytes() for n, a in found.parameters.items()} == {
        n: a.tobytes() for n, a in expected.parameters.items()
    }
    facts = ("base_sha256", "adapter_sha256", "num_examples", "steps", "loss_before", "loss_after", "runtime")
    assert [getattr(found, name) for name in facts] == [getattr(expected, name) for name in facts]


def test_each_kind_of_update_round_trips(kind: Bundle) -> None:
    """LoRA, biases and elements that the device has picked: the answer fits the bundle."""
    draw = np.random.default_rng(0)
    data = {"input": draw.normal(size=(24, 16)).astype(np.float32), "labels": draw.integers(0, 3, 24)}
    message = _message(kind)
    found = messages.read_update_reply(ask(client_app(kind.path, lambda _: data), message), kind)
    check_update(found, kind)
    for spec in kind.manifest.sparse:
        assert (found.parameters[spec.indices] >= 0).all()


def test_it_evaluates_on_its_own_data(bundle: Bundle, examples: Data, app: ClientApp) -> None:
    """Like a trainer. A device without such data is not asked twice, as Flower's error says."""
    evaluates = client_app(bundle.path, lambda _: {}, held_out_for=lambda _: examples, threads=1)
    found = messages.read_evaluation_reply(ask(evaluates, _message(bundle, kind="evaluate")))
    with Trainer.open(bundle, threads=1) as trainer:
        assert found == trainer.evaluate(examples, batch_size=8)
    with pytest.raises(EdgepeftError) as caught:
        messages.read_evaluation_reply(ask(app, _message(bundle, kind="evaluate")))
    assert caught.value.code == "client-error"


def _nan(adapter: dict[str, Array]) -> dict[str, Array]:
    broken = {name: array.copy() for name, array in adapter.items()}
    next(iter(broken.values())).flat[0] = np.nan
    return broken


def test_it_says_why_it_refuses(bundle: Bundle, examples: Data, app: ClientApp, tmp_path: Path) -> None:
    """Another base, parameters that do not fit, settings out of range, data that is not there: a code each."""
    adapter = bundle.adapter()
    cases = {
        "foreign-round": (app, _message(bundle, **{"base-sha256": "0" * 64})),
        "not-finite": (app, _message(bundle, _nan(adapter))),
        "wrong-tensors": (app, _message(bundle, dict(list(adapter.items())[1:]))),
        "bad-setting": (app, _message(bundle, epochs=0)),
        "cannot-read-data": (client_app(bundle.path, lambda _: tmp_path / "none.npz"), _message(bundle)),
        "no-bundle": (client_app(tmp_path / "none", lambda _: examples), _message(bundle)),
    }
    for reference, (device, message) in cases.items():
        reply = ask(device, message)
        assert reply.error.code == messages.REFUSED
        with pytest.raises(EdgepeftError) as caught:
            messages.read_update_reply(reply, bundle)
        assert caught.value.code == reference


def test_it_stops_when_its_time_is_over(bundle: Bundle, examples: Data) -> None:
    """It replies with the training until then."""
    app = client_app(bundle.path, lambda _: examples, pause_for=lambda: Limits(minutes=1e-9))
    found = messages.read_update_reply(ask(app, _message(bundle)), bundle)
    assert found.steps == 0


def test_flowers_mods_and_strategies_go_with_it(bundle: Bundle, examples: Data, app: ClientApp) -> None:
    """Local noise changes what is sent, and it is still an update; Flower's own FedAvg accepts the replies."""
    noisy = client_app(bundle.path, lambda _: examples, threads=1, mods=[LocalDpMod(1.0, 1e-3, 1.0, 1e-5)])
    plain, noised = (messages.read_update_reply(ask(one, _message(bundle)), bundle) for one in (app, noisy))
    check_update(noised, bundle)
    assert all((noised.parameters[name] != array).any() for name, array in plain.parameters.items())
    parts = shares(examples, 2)
    split = client_app(bundle.path, lambda context: parts[context.node_id], threads=1)
    config = messages.round_config(bundle, TRAINING)
    result = FedAvg(fraction_evaluate=0.0).start(
        Devices(split, 2), messages.to_record(bundle.adapter()), num_rounds=1, train_config=config
    )
    assert isinstance(result.arrays, ArrayRecord) and set(result.arrays) == set(bundle.adapter())


def test_a_device_loads_no_more_than_it_needs() -> None:
    """Of edgepeft, the device runtime and two modules; nothing of the server, the workstation, or ray."""
    script = (
        "import sys, edgepeft.flower.client; "
        "print(*sorted(n for n in sys.modules if n.startswith('edgepeft') and not n.startswith('edgepeft_runtime'))); "
        "print({'torch', 'onnx', 'ray', 'edgepeft_export', 'edgepeft.aggregation', 'sqlite3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded, other = done.stdout.splitlines()
    names = ("", ".flower", ".flower.client", ".flower.errors", ".flower.messages")
    assert loaded.split() == [f"edgepeft{name}" for name in names]
    assert other == "set()"
