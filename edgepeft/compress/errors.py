"""Errors of pruning."""

from __future__ import annotations

from edgepeft_runtime.errors import EdgepeftError


class PruneError(EdgepeftError):
    """A model cannot be pruned with these settings, or a setting is wrong."""


class BadPruneSetting(PruneError, code="prune-setting"):
    """A pruning setting is unknown or out of range."""


class PruneAll(PruneError, code="prune-all"):
    """Pruning would remove all units of a module. Choose a smaller fraction, or keep the module."""


class NoExample(PruneError, code="no-example"):
    """Pruning channels needs an example of the model's inputs."""


class NothingToPrune(PruneError, code="nothing-to-prune"):
    """The model has nothing that this kind of pruning could remove."""


class NoCalibrationLoss(PruneError, code="no-calibration-loss"):
    """A score needs a loss, and the model returns none for the calibration data. Add labels, or give a loss."""
