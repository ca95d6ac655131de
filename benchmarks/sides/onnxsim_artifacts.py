"""Let onnxsim build its step graph: ``python -m benchmarks.sides.onnxsim_artifacts FOLDER``.

FOLDER contains ``forward.onnx`` and ``first.npz``, written by ``benchmarks.peers.rivals``. The loss is written out in
operators that onnxsim has gradients of, over labels in one-hot form. Operators without a gradient in onnxsim are
registered as such: those of the attention mask, which nothing that trains feeds, and look-ups in frozen tables.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxsim
import onnxsim.graph_grad
from onnx import TensorProto, helper, numpy_helper


def main(folder: Path) -> None:
    first = dict(np.load(folder / "first.npz"))
    model = onnx.load(str(folder / "forward.onnx"))
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name in first]:
        model.graph.initializer.remove(tensor)  # as inputs, they are not folded with what they meet
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    model, _ = onnxsim.simplify(model)
    for value in [value for value in model.graph.input if value.name in first]:
        model.graph.input.remove(value)
        model.graph.initializer.append(numpy_helper.from_array(first[value.name], value.name))
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    one_hot = np.eye(classes, dtype=np.float32)[np.load(folder.parent / "labels.npy")]
    np.save(folder / "one_hot.npy", one_hot)
    register(model, set(first))
    loop = onnxsim.compile_training_loop(with_loss(model, len(one_hot), classes), "loss", list(first))
    onnx.save(loop.step_graph.model, str(folder / "step.onnx"))
    np.savez(folder / "state.npz", allow_pickle=False, **loop.initial_state)
    about = {"state": loop.step_graph.state, "loss": loop.step_graph.loss_name}
    (folder / "step.json").write_text(json.dumps(about), encoding="utf-8")


def register(model: onnx.ModelProto, trainable: set[str]) -> None:
    """Let onnxsim differentiate past the operators that nothing trainable reaches."""
    rules = onnxsim.graph_grad
    tables = {tensor.name for tensor in model.graph.initializer}

    def none(_: object, node: onnx.NodeProto, __: str) -> list[None]:
        return [None] * len(node.input)

    def gather(context: object, node: onnx.NodeProto, gradient: str) -> list[str | None]:
        return none(context, node, gradient) if node.input[0] in tables else rules._grad_gather(context, node, gradient)

    reached, kinds = set(trainable), set()
    for node in model.graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
            kinds.add(node.op_type)
    for kind in {node.op_type for node in model.graph.node} - kinds - rules.supported_ops():
        rules.register_gradient(kind, none)
    rules.register_gradient("Gather", gather, override=True)


def with_loss(model: onnx.ModelProto, rows: int, classes: int) -> onnx.ModelProto:
    """Add the mean cross-entropy of ``logits`` [rows, classes] with ``one_hot`` of that shape, as ``loss``."""
    graph = model.graph
    (scores,) = (value.name for value in graph.output)
    graph.initializer.append(numpy_helper.from_array(np.float32(-1 / rows), "loss_scale"))
    graph.input.append(helper.make_tensor_value_info("one_hot", TensorProto.FLOAT, [rows, classes]))
    graph.node.extend(
        [
            helper.make_node("Softmax", [scores], ["loss_probabilities"], axis=1),
            helper.make_node("Log", ["loss_probabilities"], ["loss_logs"]),
            helper.make_node("Mul", ["loss_logs", "one_hot"], ["loss_terms"]),
            helper.make_node("ReduceSum", ["loss_terms"], ["loss_sum"], keepdims=0),
            helper.make_node("Mul", ["loss_sum", "loss_scale"], ["loss"]),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("loss", TensorProto.FLOAT, []))
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]))
