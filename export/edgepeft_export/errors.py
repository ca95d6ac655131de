"""Errors of the compiler."""

from __future__ import annotations

from edgepeft_runtime.errors import BundleError, EdgepeftError


class ForwardError(EdgepeftError):
    """A model from which no forward graph can be made."""


class LossError(EdgepeftError):
    """A loss that does not fit the model."""


class QuantizeError(EdgepeftError):
    """A model that cannot be quantized with these settings."""


class OptimizerError(EdgepeftError):
    """An optimizer that is unknown, or a setting of it out of range."""


class VerificationError(EdgepeftError):
    """A graph that does not compute what its source computes."""


class OrtTrainingError(EdgepeftError):
    """A bundle for which there are no artifacts of ONNX Runtime Training."""


class NotAModel(EdgepeftError, code="not-a-model"):
    """A file is not an ONNX model that can be read."""


class NothingTrains(EdgepeftError, code="nothing-trains"):
    """No parameter of the model would train. Choose another method, or name parameters."""


class NoCalibration(EdgepeftError, code="no-calibration"):
    """There is no calibration data, and a setting needs it. Give a few batches."""


class NotABundle(BundleError, code="not-a-bundle"):
    """The output path exists and is no bundle. Choose a path that does not exist."""


class BundleExists(BundleError, code="bundle-exists"):
    """There is a bundle at the output path. Choose another path, or allow overwriting."""


class NothingReachesLoss(EdgepeftError, code="nothing-reaches-loss"):
    """The loss depends on no trainable parameter. Train others, or choose another output for the loss."""


class DequantizedTensor(EdgepeftError, code="dequantized-tensor"):
    """A graph stores a large float tensor besides the quantized base. Please report the model's operators."""


class BadExampleInputs(ForwardError, code="bad-example-inputs"):
    """The example inputs do not fit the model. Give a dict of the arguments of forward."""


class OpsetNotConverted(ForwardError, code="opset-not-converted"):
    """The model cannot be converted to the opset that is needed. Export it again with that opset."""


class UnknownOperator(ForwardError, code="unknown-operator"):
    """A file with an operator that neither ONNX nor ONNX Runtime defines."""


class WrongInputType(ForwardError, code="input-type"):
    """A file with an input that is no tensor of numbers."""


class NoWeights(ForwardError, code="no-weights"):
    """A file without any tensor that could train, such as a forest of decision trees."""


class UnknownInitializer(ForwardError, code="unknown-initializer"):
    """No float32 initializer of the file matches a name or pattern."""


class UnknownOutput(ForwardError, code="unknown-output"):
    """The model has no output of this name. The context lists them."""


class NoSuchMatmul(ForwardError, code="no-such-matmul"):
    """No matmul of the file, with a constant matrix, matches a name or pattern."""


class BadSparseSelection(ForwardError, code="bad-sparse-selection"):
    """The selected elements of a sparse tensor are none, not ascending, or outside it."""


class NoCache(ForwardError, code="no-cache"):
    """The model cannot be exported with a cache of keys and values. Generate without it."""


class WrongParameterDtype(ForwardError, code="parameter-dtype"):
    """A trainable parameter is neither float32 nor of half precision."""


class ExportFailed(ForwardError, code="export-failed"):
    """torch.onnx cannot export the model. The context has its reason."""


class FixedDimension(ForwardError, code="fixed-dimension"):
    """The model fixes the size of a dimension that should be free."""


class SharedStorage(ForwardError, code="shared-storage"):
    """Two parameters share memory in a way that cannot be trained as one."""


class WrongLossInputs(LossError, code="loss-inputs"):
    """The loss reads an input that is neither an output of the model nor a label, or does not run on them."""


class WrongLossOutput(LossError, code="loss-outputs"):
    """The loss does not return one scalar. Return the mean over the batch."""


class LossNotExported(LossError, code="loss-export"):
    """torch.onnx cannot export the loss."""


class UnknownClassCount(LossError, code="unknown-classes"):
    """The last axis of the logits has no fixed size, so the number of classes is not known."""


class WrongLogitsRank(LossError, code="logits-rank"):
    """The logits do not have the number of axes that the loss needs."""


class WrongEmbeddings(LossError, code="embeddings"):
    """The model does not return the embeddings that the loss compares."""


class WrongClassWeights(LossError, code="class-weights"):
    """The number of class weights is not the number of classes."""


class NothingToQuantize(QuantizeError, code="nothing-to-quantize"):
    """The model has no frozen weight that could be quantized."""


class NoSuchWeight(QuantizeError, code="no-such-weight"):
    """No weight that would be quantized matches a pattern."""


class MissingCalibrationInput(QuantizeError, code="calibration-inputs"):
    """The calibration data lacks an input of the model."""


class CalibrationFailed(QuantizeError, code="calibration-run"):
    """The model cannot be run on the calibration data."""


class ExportDiffers(VerificationError, code="export-differs"):
    """The outputs of the exported graph differ from those of its source."""


class StepDiffers(VerificationError, code="step-differs"):
    """The loss of the compiled step is not that of the model. Please report the model's operators."""


class RandomForward(VerificationError, code="random-forward"):
    """The model draws random numbers outside of training, so it cannot be verified."""


class UnknownGradient(OrtTrainingError, code="unknown-gradient"):
    """There is no gradient of this name. The context lists them."""


class GraphTooLarge(OrtTrainingError, code="graph-too-large"):
    """The frozen tensors do not fit into one ONNX file of 2 GB. Quantize the base."""


class NoSparseParameters(OrtTrainingError, code="no-sparse-parameters"):
    """ONNX Runtime Training cannot train single elements of a tensor. Use the portable engine."""


class UntrainedParameters(OrtTrainingError, code="untrained-parameters"):
    """ONNX Runtime Training cannot leave parameters of a checkpoint unchanged. Use the portable engine."""


class NoTrainingPython(OrtTrainingError, code="no-training-python"):
    """The interpreter of an environment with the training wheel is needed. Give it with --training-python."""


class OfficialDequantizes(OrtTrainingError, code="official-dequantizes"):
    """ONNX Runtime's own tool stores the dequantized base. Use the gradient of edgepeft."""


class OfficialGradientFailed(OrtTrainingError, code="official-gradient"):
    """ONNX Runtime's own tool builds no gradient for this model. Use the gradient of edgepeft."""


class NoOfficialOptimizer(OrtTrainingError, code="no-official-optimizer"):
    """ONNX Runtime Training has no such optimizer. Prepare with AdamW, or use the portable engine."""
