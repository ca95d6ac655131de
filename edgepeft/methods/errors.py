"""Errors of methods."""

from __future__ import annotations

from edgepeft_runtime.errors import EdgepeftError


class MethodError(EdgepeftError):
    """A method does not fit the model, or one of its settings is out of range."""


class BadMethodSetting(MethodError, code="method-setting"):
    """A method has no such setting, or its value is out of range."""


class MethodDoesNotFit(MethodError, code="method-does-not-fit"):
    """The model has no part that the method could adapt. Name targets, or choose another method."""


class NoSuchParameter(MethodError, code="no-such-parameter"):
    """No parameter of the model matches a pattern."""


class NoSuchName(MethodError, code="no-such-name"):
    """A setting of the method names a module or parameter that the model does not have."""


class NoProxyData(MethodError, code="no-proxy-data"):
    """There is no batch to measure contributions with. Give at least one."""


class FrozenAdapter(MethodError, code="frozen-adapter"):
    """The model has an adapter that is frozen. Load it with is_trainable=True."""


class AdapterExists(MethodError, code="adapter-exists"):
    """The model has an adapter already. Train it without a method, or merge it first."""


class UnsupportedPeftType(MethodError, code="peft-type"):
    """An adapter of this type of peft cannot be trained on a device."""


class NoBiases(MethodError, code="no-biases"):
    """The model has no biases to train. Choose another method."""


class NoHead(MethodError, code="no-head"):
    """The model has no task head with weights of its own. Name the modules of the head."""
