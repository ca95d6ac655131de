"""A Flower ``ClientApp`` around the device runtime: numpy, onnxruntime and flwr are all it imports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from edgepeft.flower.messages import Call, error_reply, evaluation_reply, read_call, update_reply
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.datasets import Data
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.train.limits import Pause
from edgepeft_runtime.train.trainer import Trainer

DataOf = Callable[[Context], Data]


def client_app(
    bundle: str | Path | Callable[[Context], str | Path],
    data_for: DataOf,
    *,
    held_out_for: DataOf | None = None,
    threads: int | None = None,
    pause_for: Callable[[], Callable[[], Pause | None]] | None = None,
    mods: Sequence[Any] = (),
) -> ClientApp:
    """A ``ClientApp`` that trains a bundle's adapter on a device's own data, and evaluates it there.

    It answers each training message of a server with the parameters it has come to, and what an update says of them.
    A message of another base, or with parameters that do not fit, is answered with an error that says why; so is data
    that cannot be trained on. The bundle stays where it is: only its adapter goes over the wire.

    Args:
        bundle: its directory on the device, or where it is by the device's context (``node_config``, ``run_config``).
        data_for: the device's own data, as :meth:`edgepeft_runtime.Trainer.fit` takes it.
        held_out_for: data of the device to evaluate on, where a server asks for that; ``None``: it is refused.
        threads: threads inside an operator; ``None`` leaves it to onnxruntime.
        pause_for: makes what ``fit`` asks between steps, anew for each round: ``lambda: Limits(minutes=10)``. Training
            that it ends early is answered as it stands.
        mods: Flower's mods around the app, such as ``fixedclipping_mod`` or ``LocalDpMod``; not for bundles with
            sparse tensors, whose indices are no floats.
    """
    app = ClientApp(mods=list(mods))

    def opened(context: Context) -> Bundle:
        return Bundle.open(bundle(context) if callable(bundle) else bundle)

    @app.train()  # type: ignore[untyped-decorator]  # flwr is not type-checked here
    def train(message: Message, context: Context) -> Message:
        def run() -> Message:
            pause = None if pause_for is None else pause_for()
            with _trainer(opened(context), message, threads) as (trainer, call):
                trainer.fit(data_for(context), **call.training.of_fit(), pause=pause)
                return update_reply(trainer.update(), message)

        return _answer(message, run)

    if held_out_for is not None:

        @app.evaluate()  # type: ignore[untyped-decorator]
        def evaluate(message: Message, context: Context) -> Message:
            def run() -> Message:
                with _trainer(opened(context), message, threads) as (trainer, call):
                    found = trainer.evaluate(held_out_for(context), batch_size=call.training.batch_size)
                    return evaluation_reply(found, message)

            return _answer(message, run)

    return app


@contextmanager
def _trainer(bundle: Bundle, message: Message, threads: int | None) -> Iterator[tuple[Trainer, Call]]:
    """A trainer at the adapter that the server has sent, and what it asks for."""
    call = read_call(message, bundle)
    with Trainer.open(bundle, adapter=call.adapter, seed=call.training.seed, threads=threads) as trainer:
        yield trainer, call


def _answer(message: Message, run: Callable[[], Message]) -> Message:
    """What a call gives, or an error that says why it gives nothing."""
    try:
        return run()
    except EdgepeftError as error:
        return error_reply(error, message)
