"""A bundle's programs as segments."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgepeft_export.graph.shapes import dims_of
from edgepeft_export.memory import Polynomial
from edgepeft_export.optimizer_graph import Bucket
from edgepeft_export.program.calls import forward_calls
from edgepeft_export.program.cutting import cut
from edgepeft_export.program.library import Finish, Library
from edgepeft_export.program.peaks import program_peaks
from edgepeft_export.program.structure import Bound
from edgepeft_export.program.training import Plan, plan, train_calls
from edgepeft_runtime.bundle.programs import Call


@dataclass(frozen=True)
class Segmented:
    """A train step, evaluation and inference in segments.

    Attributes:
        library: the graphs.
        plan: of the train step.
        eval, infer: the calls.
        parameters: the names of the inputs that are no part of the batch.
        bound: which tensors a call binds.
    """

    library: Library
    plan: Plan
    eval: tuple[Call, ...]
    infer: tuple[Call, ...]
    parameters: frozenset[str]
    bound: Bound

    def train(self, buckets: Sequence[Bucket]) -> tuple[Call, ...]:
        """The calls of a train step, whose gradients go to these buckets."""
        return tuple(train_calls(self.plan, buckets, self.library))

    def activation_peaks(self, train: Sequence[Call]) -> list[Polynomial]:
        """The bytes alive at the moments of a train step that may be its peak."""
        inputs = [value for value in self.plan.cut.graph.inputs if value.name not in self.parameters]
        symbols = {dim for value in inputs for dim in dims_of(value) if isinstance(dim, str)}
        given = {*self.parameters, *self.library.frozen, *(str(value.name) for value in inputs)}
        return program_peaks(train, self.library.graphs, given, symbols)

    def forward(self, model: ir.Model, head: str) -> tuple[Call, ...]:
        """The calls of a further graph, of the same parameters; ``head`` names its last segment."""
        return tuple(forward_calls(cut(model.clone(), self.parameters, self.bound), self.library, head))


def segmented(
    models: tuple[ir.Model, ir.Model, ir.Model],
    parameters: Collection[str],
    trainable: Collection[str],
    bound: Bound,
    finish: Finish,
    rows: int,
) -> Segmented | None:
    """Cut a model's graphs.

    Args:
        models: for training, whose outputs are the sum and the weight of the loss; for evaluation, with those and the
            model's outputs; for inference.
        parameters: names of the inputs that are no part of the batch.
        trainable: those of them that train.
        bound: which tensors a call binds.
        finish: lowers a graph to what devices run, in place.
        rows: that a train step computes at once between wide tensors.

    Returns:
        ``None`` where the graph has no cuts.

    Raises:
        NoGradientRule: an operator between the loss and a parameter has no rule.
    """
    train, with_loss, infer = models
    cut_train = cut(train.clone(), parameters, bound)
    if len(cut_train.segments) < 2:
        return None
    library = Library(finish, rows)
    planned = plan(cut_train, trainable, library)
    evaluated = forward_calls(cut(with_loss.clone(), parameters, bound), library, "head.eval")
    inferred = forward_calls(cut(infer.clone(), parameters, bound), library, "head.infer")
    return Segmented(library, planned, tuple(evaluated), tuple(inferred), frozenset(parameters), bound)
