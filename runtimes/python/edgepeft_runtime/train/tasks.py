"""Several adapters over one loaded model: each call names the task, and nothing is loaded anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.batch import Batch, checked_batch
from edgepeft_runtime.engine.engine import PortableEngine, Values
from edgepeft_runtime.errors import BatchError, BundleError
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.train.trainer import Adapter, adapter_values


class Tasks:
    """Predicts by one of several adapters, which stay in memory; make one with :meth:`open`.

    Adapters of one bundle share its model. One of another method comes with a bundle of its own, whose model is opened
    beside the first.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads
        self._models: dict[str, tuple[Bundle, PortableEngine]] = {}
        self._tasks: dict[str, tuple[str, Values]] = {}

    @classmethod
    def open(
        cls, bundle: Bundle | str | Path, adapters: Mapping[str, Adapter | None], *, threads: int | None = None
    ) -> Self:
        """Load a bundle and adapters of it, by the name of their task.

        Args:
            bundle: the directory, or a bundle that is open already.
            adapters: paths of updates, or tensors by name; ``None`` is the bundle's own: the model as it was prepared.
            threads: threads inside an operator; ``None`` leaves it to onnxruntime.

        Raises:
            BundleError: the bundle or an adapter is damaged, or they do not fit.
        """
        tasks = cls(threads)
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        for name, adapter in adapters.items():
            tasks.add(name, opened, adapter)
        return tasks

    def add(self, name: str, bundle: Bundle | str | Path, adapter: Adapter | None = None) -> None:
        """Take in a further task; of a bundle that is loaded already, only the adapter is read.

        Raises:
            BundleError: there is a task of that name, or bundle and adapter do not fit.
        """
        if name in self._tasks:
            raise BundleError(
                "task-exists", f"There is a task {name!r} already.", context=None, hint="choose another name."
            )
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        key = str(opened.path.resolve())
        if key not in self._models:
            self._models[key] = opened, PortableEngine(opened, threads=self._threads)
        engine = self._models[key][1]
        self._tasks[name] = key, engine.load(adapter_values(opened, adapter)[0], {})

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, in the order they were added."""
        return tuple(self._tasks)

    def predict(self, task: str, inputs: Batch) -> dict[str, Array]:
        """The model's outputs by name, with the adapter of a task; labels among the inputs are left out.

        Raises:
            BatchError: there is no such task, or the inputs do not fit.
        """
        if task not in self._tasks:
            raise BatchError(
                "unknown-task",
                f"There is no task {task!r}.",
                context=f"there are: {', '.join(self._tasks) or 'none'}",
                hint="add it first.",
            )
        key, values = self._tasks[task]
        bundle, engine = self._models[key]
        return engine.infer(values, checked_batch(inputs, bundle.manifest, labels=False))

    def close(self) -> None:
        """Let go of the models."""
        for _, engine in self._models.values():
            engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
