"""Losses as ONNX nodes after the model's outputs."""

from edgepeft_export.errors import LossError
from edgepeft_export.losses.base import Elements, Labels, Loss, LossTerms, MeanLoss, class_labels
from edgepeft_export.losses.builtin.bce_with_logits import BCEWithLogits
from edgepeft_export.losses.builtin.causal_lm import CausalLM
from edgepeft_export.losses.builtin.cross_entropy import CrossEntropy
from edgepeft_export.losses.builtin.ctc import CTC
from edgepeft_export.losses.builtin.dice import Dice
from edgepeft_export.losses.builtin.focal import BinaryFocal, Focal
from edgepeft_export.losses.builtin.huber import Huber, SmoothL1
from edgepeft_export.losses.builtin.l1 import L1
from edgepeft_export.losses.builtin.mse import MSE
from edgepeft_export.losses.builtin.multiple_negatives import MultipleNegatives
from edgepeft_export.losses.builtin.pairs import Contrastive, CosineEmbedding, CosineSimilarity
from edgepeft_export.losses.builtin.soft_targets import KLDivergence, SoftCrossEntropy
from edgepeft_export.losses.builtin.triplet import Triplet
from edgepeft_export.losses.custom import OnnxLoss
from edgepeft_export.losses.emitting import FIRST_LOGITS
from edgepeft_export.losses.registry import LOSSES, by_name
from edgepeft_export.losses.weighted import Term, WeightedSum

__all__ = [
    "CTC",
    "FIRST_LOGITS",
    "L1",
    "LOSSES",
    "MSE",
    "BCEWithLogits",
    "BinaryFocal",
    "CausalLM",
    "Contrastive",
    "CosineEmbedding",
    "CosineSimilarity",
    "CrossEntropy",
    "Dice",
    "Elements",
    "Focal",
    "Huber",
    "KLDivergence",
    "Labels",
    "Loss",
    "LossError",
    "LossTerms",
    "MeanLoss",
    "MultipleNegatives",
    "OnnxLoss",
    "SmoothL1",
    "SoftCrossEntropy",
    "Term",
    "Triplet",
    "WeightedSum",
    "by_name",
    "class_labels",
]
