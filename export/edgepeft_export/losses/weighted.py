"""A weighted sum of losses, over one output or several."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from edgepeft_export.errors import WrongLossInputs
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.losses.base import Labels, Loss, LossTerms
from edgepeft_export.losses.emitting import Values, first
from edgepeft_runtime.errors import BadSetting

_TERM = re.compile(
    r"\s*(?:(?P<weight>[0-9.]+(?:[eE][-+]?\d+)?)\s*\*)?\s*(?P<name>\w+)\s*(?:\((?P<inside>[^()]*)\))?\s*"
)


@dataclass(frozen=True)
class Term:
    """A loss as a part of a sum.

    Attributes:
        loss: the loss.
        weight: factor of its mean.
        outputs: names of the outputs that it reads; by default all.
        label: name of its labels in the batch; by default ``labels`` for all outputs, else ``<output>_labels``.
    """

    loss: Loss
    weight: float = 1.0
    outputs: tuple[str, ...] = ()
    label: str | None = None

    def reads(self, outputs: Values) -> Values:
        """The outputs that it reads, by name.

        Raises:
            WrongLossInputs: the model does not return one of them.
        """
        missing = [name for name in self.outputs if name not in outputs]
        if missing:
            raise WrongLossInputs(
                f"The loss {self.loss.name} reads {', '.join(map(repr, missing))}, which the model does not return.",
                context=f"the model returns: {', '.join(outputs)}",
                hint="name outputs of the model.",
            )
        return {name: outputs[name] for name in self.outputs} or outputs

    def renamed(self, label: str) -> str:
        """The name of one of the loss's labels in the batch."""
        if label != "labels":
            return label
        return self.label or (f"{self.outputs[0]}_labels" if self.outputs else "labels")

    def values(self) -> dict[str, object]:
        """The term for a manifest."""
        own = {
            "kind": self.loss.name,
            "weight": self.weight,
            "outputs": list(self.outputs),
            "label": self.renamed("labels"),
        }
        settings = {
            name: list(value) if isinstance(value, tuple) else value for name, value in self.loss.values().items()
        }
        return {**own, **settings}


@dataclass(frozen=True)
class WeightedSum(Loss):
    """The sum of the means of several losses, each times its weight. Batches are weighted by their examples."""

    name: ClassVar[str] = "weighted_sum"
    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        """Check the terms.

        Raises:
            BadSetting: there is none, or a weight is not above 0.
        """
        if not self.terms or not all(0 < term.weight < float("inf") for term in self.terms):
            raise BadSetting("terms", [term.values() for term in self.terms], "losses with weights above 0")

    def labels(self, outputs: Values) -> Sequence[Labels]:
        found: dict[str, Labels] = {}
        for term in self.terms:
            for label in term.loss.labels(term.reads(outputs)):
                renamed = replace(label, name=term.renamed(label.name))
                if found.setdefault(renamed.name, renamed) != renamed:
                    raise WrongLossInputs(
                        f"Two terms of the loss read the label {renamed.name!r} as different kinds.",
                        context=f"as {_described(found[renamed.name])} and as {_described(renamed)}",
                        hint="name the label of each term: mse(output, label=target).",
                    )
        return list(found.values())

    def emit(self, emit: Emitter, outputs: Values, labels: Values) -> LossTerms:
        means = [self._mean(emit, term, term.reads(outputs), labels) for term in self.terms]
        total = emit.add(means)
        rows = emit.cast(emit.op("Squeeze", emit.op("Shape", first(outputs), start=0, end=1)), ir.DataType.FLOAT)
        return LossTerms(emit.op("Mul", total, rows), rows)

    def _mean(self, emit: Emitter, term: Term, outputs: Values, labels: Values) -> ir.Value:
        """The mean of a term times its weight; 0 where no label counts."""
        own = {label.name: labels[term.renamed(label.name)] for label in term.loss.labels(outputs)}
        total, weight = term.loss.emit(emit, outputs, own)
        nothing = emit.op("Equal", weight, emit.scalar(0.0, like=total))
        safe = emit.op("Where", nothing, emit.scalar(1.0, like=total), weight)
        return emit.op("Mul", emit.op("Div", total, safe), emit.scalar(term.weight, like=total))

    def values(self) -> dict[str, object]:
        """The terms, for a manifest."""
        return {"terms": [term.values() for term in self.terms]}


def is_sum(text: str) -> bool:
    """Whether a text is more than the name of a loss."""
    return re.search(r"[+*(]", text) is not None


def parsed(text: str) -> list[tuple[float, str, tuple[str, ...], dict[str, object]]]:
    """Read ``cross_entropy(logits) + 0.3 * huber(box, delta=0.5)`` as weight, name, outputs and settings of each term.

    Raises:
        BadSetting: the text is not of this form.
    """
    terms, end = [], 0
    while True:
        match = _TERM.match(text, end)
        if match is None or (match.end() < len(text) and text[match.end()] != "+"):
            raise BadSetting("loss", text, "like cross_entropy(logits) + 0.3 * huber(box, delta=0.5)")
        parts = [part.strip() for part in (match["inside"] or "").split(",") if part.strip()]
        outputs = tuple(part for part in parts if "=" not in part)
        settings = {
            key.strip(): _value(value.strip()) for key, _, value in (p.partition("=") for p in parts if "=" in p)
        }
        terms.append((float(match["weight"] or 1), match["name"], outputs, settings))
        end = match.end() + 1
        if match.end() == len(text):
            return terms


def _value(text: str) -> object:
    """A number or a truth value as Python writes it, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text, text)


def _described(label: Labels) -> str:
    return f"{label.dtype.name} [{', '.join(map(str, label.shape))}]"
