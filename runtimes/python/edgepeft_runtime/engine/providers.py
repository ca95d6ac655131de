"""Finds execution providers: those that an onnxruntime has been built with, and those of plug-in libraries."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import onnxruntime as ort

from edgepeft_runtime.errors import UnknownProvider

CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    Attributes:
        name: its name in onnxruntime.
        devices: ``OrtEpDevice`` of a plug-in library, of which the first is used; empty for one that is built in.
    """

    name: str
    devices: Sequence[Any] = ()

    def session(self, path: str, options: ort.SessionOptions) -> ort.InferenceSession:
        """Load a graph with this provider, and with the CPU for nodes that it does not run.

        Raises:
            RuntimeError: onnxruntime cannot use the provider.
        """
        if self.devices:
            options.add_provider_for_devices(self.devices[:1], {})
            return ort.InferenceSession(path, options)
        providers = list(dict.fromkeys((self.name, CPU)))
        # By default onnxruntime continues without a provider that fails, and prints a line.
        session = ort.InferenceSession(path, options, providers=providers, enable_fallback=0)
        if self.name not in session.get_providers():
            raise RuntimeError(f"onnxruntime cannot use {self.name}")
        return session


def provider_of(name: str) -> Provider:
    """Return a provider by its name, or by the Python package of its plug-in library, which is registered.

    Args:
        name: ``XnnpackExecutionProvider``, or ``onnxruntime_ep_webgpu``.

    Raises:
        UnknownProvider: this onnxruntime has no such provider, or its library finds no device.
    """
    if name.isidentifier() and importlib.util.find_spec(name) is not None:
        name = _registered(name)
    devices = [device for device in _devices() if device.ep_name == name]
    if devices or name in ort.get_available_providers():
        return Provider(name, devices)
    known = dict.fromkeys([*ort.get_available_providers(), *(device.ep_name for device in _devices())])
    raise UnknownProvider(
        f"onnxruntime {ort.__version__} has no execution provider {name!r} with a device.",
        context=f"there are: {', '.join(known)}",
        hint=_hint(name),
    )


def _hint(name: str) -> str:
    if not name.endswith("ExecutionProvider"):
        return f"if it is the Python package of a plug-in: pip install {name.replace('_', '-')}"
    return "install its package and the driver of its device, or call register_execution_provider_library first."


def _devices() -> Sequence[Any]:
    """Return the devices of plug-in libraries; older versions of onnxruntime have no such libraries."""
    return ort.get_ep_devices() if hasattr(ort, "get_ep_devices") else ()


def _registered(package: str) -> str:
    """Register the library of a plug-in package, and return the name of its provider."""
    module = import_module(package)
    name: str = module.get_ep_name()
    if all(device.ep_name != name for device in _devices()):
        ort.register_execution_provider_library(package, module.get_library_path())
    return name
