"""Several adapters over one loaded model: each call names a task, and switching loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from edgepeft_runtime.bundle.adapter_source import AdapterSource, load_adapter
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.engine.engine import TrainState
from edgepeft_runtime.engine.portable import PortableEngine
from edgepeft_runtime.engine.predict import predict
from edgepeft_runtime.errors import NoSuchTask, TaskExists
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.names import did_you_mean


class Tasks:
    """Predicts with one of several adapters, which stay in memory; create one with ``open``.

    Adapters of one bundle share its model. An adapter of another method belongs to another bundle, whose model is
    loaded in addition.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads
        self._models: dict[str, tuple[Bundle, PortableEngine]] = {}
        self._tasks: dict[str, tuple[str, TrainState]] = {}

    @classmethod
    def open(
        cls, bundle: Bundle | str | Path, adapters: Mapping[str, AdapterSource | None], *, threads: int | None = None
    ) -> Self:
        """Load a bundle and several adapters of it.

        Args:
            bundle: the directory, or an opened bundle.
            adapters: by the name of the task: paths of updates, or tensors by name. ``None`` stands for the bundle's
                own adapter, that is, the model as it was prepared.
            threads: threads inside an operator; ``None`` leaves it to onnxruntime.

        Raises:
            BundleError: the bundle or an adapter is damaged, or they do not fit together.
        """
        tasks = cls(threads)
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        for name, adapter in adapters.items():
            tasks.add(name, opened, adapter)
        return tasks

    def add(self, name: str, bundle: Bundle | str | Path, adapter: AdapterSource | None = None) -> None:
        """Add a task. If its bundle is loaded already, only the adapter is read.

        Raises:
            BundleError: there is a task of that name, or bundle and adapter do not fit together.
        """
        if name in self._tasks:
            raise TaskExists(f"There is a task {name!r} already.", context=None, hint="choose another name.")
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        key = str(opened.path.resolve())
        if key not in self._models:
            self._models[key] = opened, PortableEngine(opened, threads=self._threads)
        engine = self._models[key][1]
        self._tasks[name] = key, engine.load(load_adapter(opened, adapter)[0], {})

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, in the order in which they were added."""
        return tuple(self._tasks)

    def predict(self, task: str, inputs: Batch) -> dict[str, Array]:
        """Return the model's outputs by name, with the adapter of a task. Labels among the inputs are left out.

        Raises:
            BatchError: there is no such task, or the inputs do not fit.
        """
        if task not in self._tasks:
            raise NoSuchTask(
                f"There is no task {task!r}.",
                context=f"there are: {', '.join(self._tasks) or 'none'}",
                hint=did_you_mean(task, self._tasks, "add it first."),
            )
        key, state = self._tasks[task]
        bundle, engine = self._models[key]
        return predict(engine, bundle.manifest, state, inputs)

    def close(self) -> None:
        """Release the models."""
        for _, engine in self._models.values():
            engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
