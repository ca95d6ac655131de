"""Errors of training: settings, engines, checkpoints, updates."""

from __future__ import annotations

from edgepeft_runtime.errors.base import EdgepeftError, StateError, TrainingError, UpdateError
from edgepeft_runtime.shown import quoted


class SettingError(EdgepeftError):
    """A setting that is unknown or out of range, or a name that nothing has."""


class UnknownName(SettingError, code="unknown-name"):
    """There is no method, optimizer or loss of this name. The context lists them."""


class UnknownSetting(SettingError, code="unknown-setting"):
    """The chosen method, optimizer or loss has no setting of this name. The context lists its settings."""


class BadSetting(SettingError, code="bad-setting"):
    """A setting is out of range or of the wrong type. The hint says which values are allowed."""

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(f"{name} = {quoted(value)} is out of range.", context=None, hint=f"choose {allowed}.")


class WrongMetric(SettingError, code="wrong-metric"):
    """A metric is not defined for the loss or the labels of the bundle. Choose another one."""


class Diverged(TrainingError, code="diverged"):
    """A loss, a gradient or a parameter became NaN or infinite. Use a smaller learning rate, and look at the data."""


class OnnxruntimeFailed(TrainingError, code="onnxruntime-failed"):
    """ONNX Runtime failed while it ran a graph. The node's name leads to the layer."""


class NoOrtTraining(TrainingError, code="no-ort-training"):
    """The environment has no training build of onnxruntime. Install it, or use the portable engine."""


class UnknownEngine(TrainingError, code="unknown-engine"):
    """There is no engine of this name. The context lists them."""


class UnknownProvider(TrainingError, code="unknown-provider"):
    """There is no execution provider of this name, or it has no device. The context lists them."""


class NoThermometer(TrainingError, code="no-thermometer"):
    """The temperature of the device cannot be read. Train without a temperature limit."""


class NoProcessorTimes(TrainingError, code="no-processor-times"):
    """The system does not report how busy it is. Train without the limit that waits for an idle device."""


class UnknownSchedule(TrainingError, code="unknown-schedule"):
    """There is no learning rate schedule of this name."""


class BadWarmup(TrainingError, code="bad-warmup"):
    """The warm-up is neither a number of steps nor a fraction of them."""


class UnknownNumberOfSteps(TrainingError, code="unknown-number-of-steps"):
    """The number of batches is not known, and a setting needs it. Pass max_steps."""


class NothingToCache(TrainingError, code="nothing-to-cache"):
    """The bundle or the engine has no activations that can be kept between epochs. Train without a cache."""


class StateInUse(StateError, code="state-in-use"):
    """Another process trains in the state directory. End it, or use another directory."""


class CannotWriteState(StateError, code="cannot-write-state"):
    """The state directory cannot be created or written. Check the permissions and the free space."""


class DamagedState(StateError, code="damaged-state"):
    """No checkpoint in the state directory is intact. Restart the run in another directory."""


class UnknownCheckpoint(StateError, code="unknown-checkpoint"):
    """A checkpoint is of another format or version. Resume it with the edgepeft that wrote it."""


class ForeignState(StateError, code="foreign-state"):
    """The state belongs to another bundle or adapter. Use the ones the run was started with."""


class OtherSettings(StateError, code="other-settings"):
    """The state belongs to a run with other settings or data. Use those, or another directory."""


class DataChanged(StateError, code="data-changed"):
    """The data has fewer batches than the run has used. Resume with the data the run was started with."""


class NoState(StateError, code="no-state"):
    """The run has no state directory, or there is no checkpoint in it."""


class NotAnUpdate(UpdateError, code="not-an-update"):
    """A file or message is not an update of the known format."""


class ForeignUpdate(UpdateError, code="foreign-update"):
    """An update was trained on another base. Use the bundle it was trained on."""


class StaleUpdate(UpdateError, code="stale-update"):
    """An update started from an adapter that is not, or no longer, the one expected.

    Train again from the current one.
    """


class CheckpointError(UpdateError):
    """A file that is not a checkpoint of ONNX Runtime Training that can be read."""

    def __init__(self, path: object, problem: str) -> None:
        hint = "save it again with CheckpointState.save_checkpoint on the device."
        super().__init__(f"{path} is not a checkpoint of ONNX Runtime Training.", context=problem, hint=hint)


class NotACheckpoint(CheckpointError, code="not-a-checkpoint"):
    """A file is not a checkpoint of ONNX Runtime Training."""


class DamagedCheckpoint(CheckpointError, code="damaged-checkpoint"):
    """A checkpoint of ONNX Runtime Training is damaged. Save it again."""
