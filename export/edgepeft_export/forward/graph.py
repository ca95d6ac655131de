"""The narrow waist: a forward graph plus the list of its trainable inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.forward.identity import SourceTensor
from edgepeft_export.graph.edit import bind_inputs
from edgepeft_export.verification.compare import Verified
from edgepeft_runtime.bundle.adapter_layout import AdapterLayout


@dataclass(frozen=True)
class SparseTensor:
    """A frozen tensor some of whose elements train; see ``edgepeft_export.forward.sparse``.

    Attributes:
        tensor: its name. The initializer has this name, or ``<tensor>.T`` where the graph stores it transposed.
        shape: of the tensor, not transposed.
        initial_indices: initial flat indices into it, in row-major order; -1 where the device has yet to pick.
        batches: number of batches over which the device sums the gradient's magnitudes before it picks.
    """

    tensor: str
    shape: tuple[int, ...]
    initial_indices: NDArray[np.int32]
    batches: int = 1

    @property
    def values(self) -> str:
        """Name of the parameter that is added at the indices."""
        return f"{self.tensor}.values"

    @property
    def indices(self) -> str:
        """Name of the graph input with the indices."""
        return f"{self.tensor}.indices"


@dataclass(frozen=True)
class SizeRange:
    """The least and the largest size of a dimension; ``most`` is ``None`` where there is no largest one."""

    least: int = 1
    most: int | None = None


@dataclass(frozen=True)
class Forward:
    """A forward graph whose trainable tensors are inputs and whose frozen tensors are initializers.

    Attributes:
        model: opset 20, shapes inferred. Its inputs are ``inputs``, then ``parameters``, and the indices of ``sparse``.
        inputs: names of the model's inputs.
        parameters: initial values of the parameters, by the name of the graph input.
        sparse: frozen tensors of which single elements train, by parameters of their own.
        adapter: the layout of the parameters, and which of them do not train.
        roles: the role of each parameter, ``weight`` where it is missing.
        verified: the runs on which the graph was compared with its source.
        source: the tensors of the source, of which those that are no parameters are the identity of the base; ``None``
            where the graph itself is the source.
        longest: the most positions of an input, where that is known.
        limits: of the free sizes for which the graph is right, where there are any.
        source_outputs: names of a file's own outputs, in its order; empty where they are those of a module.
    """

    model: ir.Model
    inputs: tuple[str, ...]
    parameters: Mapping[str, NDArray[np.generic]]
    sparse: tuple[SparseTensor, ...] = ()
    adapter: AdapterLayout = field(default_factory=AdapterLayout)
    roles: Mapping[str, str] = field(default_factory=dict)
    verified: Verified = field(default_factory=Verified)
    source: tuple[SourceTensor, ...] | None = None
    longest: int | None = None
    limits: Mapping[str, SizeRange] = field(default_factory=dict)
    source_outputs: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the model's outputs."""
        return tuple(str(value.name) for value in self.model.graph.outputs)

    def input_values(self) -> list[ir.Value]:
        """The graph inputs that are the model's inputs."""
        return [value for value in self.model.graph.inputs if value.name in self.inputs]

    def fixed(self, names: Collection[str]) -> dict[str, NDArray[np.generic]]:
        """Values of these parameters and, where they are elements of a tensor, of their indices."""
        indices = {sparse.indices: sparse.initial_indices for sparse in self.sparse if sparse.values in names}
        return {**{name: self.parameters[name] for name in names}, **indices}


def freeze(forward: Forward, names: Collection[str]) -> Forward:
    """A copy in which these parameters are initializers."""
    model = forward.model.clone()
    bind_inputs(model.graph, forward.fixed(names))
    kept = {name: array for name, array in forward.parameters.items() if name not in names}
    sparse = tuple(sparse for sparse in forward.sparse if sparse.values in kept)
    adapter = forward.adapter.restricted_to(kept)
    return replace(forward, model=model, parameters=kept, sparse=sparse, adapter=adapter)


def without_training(forward: Forward, names: Collection[str]) -> Forward:
    """Return the same graph, in which these parameters do not train."""
    non_trainable = tuple(dict.fromkeys([*forward.adapter.non_trainable, *names]))
    return replace(forward, adapter=replace(forward.adapter, non_trainable=non_trainable))
