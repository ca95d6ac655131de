"""A user's own loss, given as an ONNX model (a torch function is exported to one first)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir
from onnx.inliner import inline_selected_functions
from onnx_ir.passes import common

from edgepeft_export.errors import WrongLossInputs, WrongLossOutput
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.modelfile import load_model
from edgepeft_export.graph.shapes import dims_of, dtype_of
from edgepeft_export.losses.base import Elements, Labels, Loss, LossTerms, mean_of
from edgepeft_export.passes import single_precision

_LOSS_OPERATORS = ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")


@dataclass(frozen=True)
class OnnxLoss(Loss):
    """A loss of one output: the mean over the batch, or the loss of each example.

    Inputs of the model that are named like an output of the network are wired to it; all others are labels, fed by the
    user. Batches are weighted by their number of rows (axis 0 of the first label, or of the first output).

    Attributes:
        model: opset 20. Its labels have known dtypes and ranks.
        classes: the number of classes of a label, by its name; checked before each step.
    """

    name: ClassVar[str] = "custom"
    model: ir.Model
    classes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> OnnxLoss:
        """Read a loss from an ``.onnx`` file."""
        return cls(inlined(load_model(path)))

    def labels(self, outputs: Mapping[str, ir.Value]) -> Sequence[Labels]:
        self._check(outputs)
        own = [value for value in self.model.graph.inputs if value.name not in outputs]
        return [self._label(value) for value in own]

    def emit(self, emit: Emitter, outputs: Mapping[str, ir.Value], labels: Mapping[str, ir.Value]) -> LossTerms:
        mean = _splice(self.model.clone().graph, emit, {**outputs, **labels})
        if _is_vector(mean):
            return mean_of(emit, Elements(mean))
        rows_of = next(iter({**labels, **outputs}.values()))
        rows = emit.op("Cast", emit.op("Squeeze", emit.dim(rows_of, 0)), to=int(ir.DataType.FLOAT))
        return LossTerms(emit.op("Mul", emit.op("Reshape", mean, emit.ints()), rows), rows)

    def values(self) -> dict[str, object]:
        """The name of the graph."""
        return {"name": self.model.graph.name}

    def _label(self, value: ir.Value) -> Labels:
        name = str(value.name)
        return Labels(name, dtype_of(value), tuple(dims_of(value)), self.classes.get(name))

    def _check(self, outputs: Mapping[str, ir.Value]) -> None:
        graph = self.model.graph
        names = [str(value.name) for value in graph.inputs]
        if not any(name in outputs for name in names):
            raise WrongLossInputs(
                "The loss reads none of the model's outputs.",
                context=f"the loss reads: {', '.join(names)}\nthe model returns: {', '.join(outputs)}",
                hint="name an argument of the loss like the output it reads.",
            )
        if len(graph.outputs) != 1:
            raise WrongLossOutput(
                f"The loss returns {len(graph.outputs)} outputs instead of one scalar.",
                context=None,
                hint="return the mean loss of the batch, a float32 scalar.",
            )
        (result,) = graph.outputs
        if result.shape is not None and not _is_vector(result) and any(dim != 1 for dim in dims_of(result)):
            raise WrongLossOutput(
                f"The loss returns a tensor [{', '.join(map(str, dims_of(result)))}] instead of one scalar.",
                context=None,
                hint="return the mean over the batch, a float32 scalar, or the loss of each example, [batch].",
            )


def _is_vector(value: ir.Value) -> bool:
    """Whether it has an element for each example: one axis, whose size is free."""
    return value.shape is not None and len(value.shape) == 1 and not isinstance(dims_of(value)[0], int)


def _splice(graph: ir.Graph, emit: Emitter, values: Mapping[str, ir.Value]) -> ir.Value:
    """Move the nodes of ``graph`` after the emitter's, with ``values`` as its inputs. Returns its output."""
    for value in graph.inputs:
        value.replace_all_uses_with(values[str(value.name)])
    (result,) = graph.outputs
    graph.outputs.clear()
    for initializer in list(graph.initializers.values()):
        del graph.initializers[str(initializer.name)]
        initializer.name = f"loss/{initializer.name}"
        emit.graph.register_initializer(initializer)
    for node in list(graph):
        graph.remove(node)
        node.name = f"loss/{node.name or node.op_type}"
        for output in node.outputs:
            output.name = f"loss/{output.name}"
        emit.graph.append(node)
    return result


def inlined(model: ir.Model) -> ir.Model:
    """The loss model without functions and with its constants as initializers, ready to be spliced.

    ONNX's own loss operators, to which torch exports its loss functions, are expanded to operators with gradient rules.
    """
    if any(node.op_type in _LOSS_OPERATORS for node in model.graph):
        expanded = inline_selected_functions(
            ir.to_proto(model), [("", op_type) for op_type in _LOSS_OPERATORS], inline_schema_functions=True
        )
        model = ir.from_proto(expanded)
    common.InlinePass()(model)
    single_precision(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0)(model)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    return model
