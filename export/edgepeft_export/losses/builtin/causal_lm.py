"""Cross-entropy of the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgepeft_export.errors import WrongLogitsRank
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dims_of
from edgepeft_export.losses.base import Labels, LossTerms, MeanLoss, class_labels
from edgepeft_export.losses.builtin.cross_entropy import CrossEntropy, cross_entropy
from edgepeft_export.losses.emitting import FIRST_LOGITS, Values, first, known_dim, spread_over, text
from edgepeft_runtime.settings import setting


@dataclass(frozen=True)
class CausalLM(MeanLoss):
    """Cross-entropy of each token given those before it, as transformers' ``ForCausalLMLoss``.

    ``labels`` are the unshifted input ids. They are shifted here. Where the model learns a prompt, it has an output
    ``first_logits`` [batch, vocabulary], and the first token counts too, given the prompt.
    """

    name: ClassVar[str] = "causal_lm"
    predicts_tokens: ClassVar[bool] = True
    reads_scores: ClassVar[bool] = True
    ignore_index: int = setting(-100, "Label that is ignored, for example padding.")
    label_smoothing: float = setting(
        0.0, "Fraction of the target that is spread evenly over all classes.", minimum=0, below=1
    )

    def targets(self, outputs: Values) -> Sequence[Labels]:
        dims = dims_of(first(outputs))
        if len(dims) != 3:
            raise WrongLogitsRank(
                f"A causal language model returns logits [batch, sequence, vocabulary]; this one returns {text(dims)}.",
                context=None,
                hint="choose cross_entropy for a classifier.",
            )
        return [class_labels(dims[:2], dims[2], self.ignore_index)]

    def emit(self, emit: Emitter, outputs: Values, labels: Values) -> LossTerms:
        logits, target = first(outputs), labels["labels"]
        # The last token predicts nothing. Its label becomes an ignored one, which saves a copy of the logits.
        following = emit.op("Slice", target, emit.ints(1), emit.ints(np.iinfo(np.int64).max), emit.ints(1))
        padded = emit.op("Pad", following, emit.ints(0, 0, 0, 1), emit.scalar(self.ignore_index, like=target))
        flat = emit.op("Reshape", logits, emit.ints(-1, known_dim(logits, 2)))
        settings = CrossEntropy(self.label_smoothing, None, self.ignore_index)
        weights = self.weights_in(labels)
        of_tokens = spread_over(emit, weights, target)
        terms = cross_entropy(emit, flat, emit.op("Reshape", padded, emit.ints(-1)), settings, of_tokens)
        if FIRST_LOGITS not in outputs:
            return terms
        opening = emit.op("Squeeze", emit.op("Slice", target, emit.ints(0), emit.ints(1), emit.ints(1)), emit.ints(1))
        given_prompt = cross_entropy(emit, outputs[FIRST_LOGITS], opening, settings, weights)
        return LossTerms(*(emit.op("Add", *pair) for pair in zip(terms, given_prompt, strict=True)))
