"""A Flower ``ClientApp`` around the device runtime. It needs only numpy, onnxruntime and flwr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from edgepeft.flower.messages import Call, error_reply, evaluation_reply, read_call, update_reply
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.sources import Data
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
    mods: Sequence[object] = (),
) -> ClientApp:
    """Return a ``ClientApp`` that trains and evaluates a bundle's adapter on a device's own data.

    It answers each training message with the trained parameters and the metadata of an update. A message for another
    base, or with parameters that do not fit, is answered with an error that names the reason, and so is data that
    cannot be trained on. The bundle stays on the device: only its adapter is sent.

    Args:
        bundle: Its directory on the device, or a function of the device's context (``node_config``, ``run_config``).
        data_for: Returns the device's own data, as ``edgepeft_runtime.Trainer.fit`` accepts it.
        held_out_for: Returns data of the device to evaluate on; ``None``: requests to evaluate are refused.
        threads: Threads inside an operator; ``None`` leaves it to onnxruntime.
        pause_for: Makes the ``pause`` of ``fit`` for each round: ``lambda: Limits(minutes=10)``. If it ends training
            early, the answer is the adapter so far.
        mods: Flower's mods around the app, such as ``fixedclipping_mod`` or ``LocalDpMod``; not for bundles with
            sparse tensors, whose indices are not floats.
    """
    app = ClientApp(mods=list(mods))

    def load(context: Context) -> Bundle:
        return Bundle.open(bundle(context) if callable(bundle) else bundle)

    @app.train()  # type: ignore[untyped-decorator]  # flwr is not type-checked here
    def train(message: Message, context: Context) -> Message:
        def run() -> Message:
            pause = None if pause_for is None else pause_for()
            with _trainer(load(context), message, threads) as (trainer, call):
                training = call.training
                trainer.fit(
                    data_for(context),
                    epochs=training.epochs,
                    batch_size=training.batch_size,
                    accumulate=training.accumulate,
                    lr=training.lr,
                    schedule=training.schedule,
                    warmup=training.warmup,
                    max_steps=training.max_steps,
                    pause=pause,
                )
                return update_reply(trainer.update(), message)

        return _answer(message, run)

    if held_out_for is not None:

        @app.evaluate()  # type: ignore[untyped-decorator]
        def evaluate(message: Message, context: Context) -> Message:
            def run() -> Message:
                with _trainer(load(context), message, threads) as (trainer, call):
                    evaluation = trainer.evaluate(held_out_for(context), batch_size=call.training.batch_size)
                    return evaluation_reply(evaluation, message)

            return _answer(message, run)

    return app


@contextmanager
def _trainer(bundle: Bundle, message: Message, threads: int | None) -> Iterator[tuple[Trainer, Call]]:
    """Yield a trainer with the adapter that the server has sent, and the server's call."""
    call = read_call(message, bundle)
    with Trainer.open(bundle, adapter=call.adapter, seed=call.training.seed, threads=threads) as trainer:
        yield trainer, call


def _answer(message: Message, run: Callable[[], Message]) -> Message:
    """Return the result of a call as a message, or an error with the reason for its failure."""
    try:
        return run()
    except EdgepeftError as error:
        return error_reply(error, message)
