"""Untrusted graphs: ambiguous encodings, references to other files, and endless loops are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepeft_runtime.bundle.graphfile import MAX_TRIPS, checked_graph
from edgepeft_runtime.errors import BundleError
from edgepeft_runtime.files.wire import varint
from tests.support.tiny_bundle import external_tensor

GRAPH = 7


def encoded(value: int, more: int = 0) -> bytes:
    """A varint, with ``more`` bytes that it does not need."""
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.append(value & 0x7F)
    parts += [0] * more
    return bytes([*(part | 0x80 for part in parts[:-1]), parts[-1]])


def delimited(number: int, content: bytes) -> bytes:
    """A field of bytes."""
    return encoded(number << 3 | 2) + encoded(len(content)) + content


def pieces(raw: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """The fields of a message: number, all bytes, content."""
    offset, data = 0, memoryview(raw)
    while offset < len(raw):
        first = offset
        tag, offset = varint(data, offset)
        length, start = varint(data, offset)
        stop = start if tag & 7 == 0 else start + length
        yield tag >> 3, raw[first:stop], raw[start:stop]
        offset = stop


def model(*nodes: onnx.NodeProto, tensors: tuple[onnx.TensorProto, ...] = ()) -> onnx.ModelProto:
    """A model with a float input ``x``, an int64 input ``n``, and an output ``y`` of the last node."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])]
    inputs.append(helper.make_tensor_value_info("n", TensorProto.INT64, []))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, list(tensors))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def plain() -> bytes:
    """A model that reads the weights."""
    return model(helper.make_node("Neg", ["x"], ["y"]), tensors=(external_tensor(),)).SerializeToString()


def with_graph(change: Callable[[bytes], bytes]) -> bytes:
    """The plain model with another graph field."""
    return b"".join(change(piece) if number == GRAPH else piece for number, piece, _ in pieces(plain()))


def graph_content() -> bytes:
    return next(content for number, _, content in pieces(plain()) if number == GRAPH)


def changed_tensor(change: Callable[[onnx.TensorProto], object]) -> bytes:
    """The plain model with another initializer."""
    proto = onnx.load_model_from_string(plain())
    change(proto.graph.initializer[0])
    return proto.SerializeToString()


def raw_tensor(more: bytes) -> bytes:
    """The plain model, with bytes after its initializer that only a parser understands."""
    inside = b"".join(
        delimited(5, content + more) if number == 5 else piece for number, piece, content in pieces(graph_content())
    )
    return with_graph(lambda _: delimited(GRAPH, inside))


REFUSED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "tag-beyond-32-bits": lambda: with_graph(lambda field: bytes([0xBA, 0x80, 0x80, 0x80, 0x10]) + field[1:]),
    "tag-in-more-bytes": lambda: with_graph(lambda field: encoded(GRAPH << 3 | 2, more=1) + field[1:]),
    "length-in-more-bytes": lambda: with_graph(
        lambda _: encoded(GRAPH << 3 | 2) + encoded(len(graph_content()), more=2) + graph_content()
    ),
    "number-beyond-64-bits": lambda: plain() + b"\x28" + b"\xff" * 9 + b"\x7f",
    "number-of-11-bytes": lambda: plain() + b"\x28" + b"\xff" * 10 + b"\x01",
    "number-cut-short": lambda: plain() + b"\x28\xff",
    "field-number-0": lambda: plain() + b"\x02\x01x",
    "group": lambda: plain() + b"\x3b" + graph_content() + b"\x3c",
    "wire-type-6": lambda: plain() + b"\x0e",
    "wire-type-of-another-field": lambda: plain() + encoded(GRAPH << 3) + b"\x01",
    "unknown-field": lambda: plain() + delimited(99, graph_content()),
    "training-information": lambda: plain() + delimited(20, delimited(1, graph_content())),
    "functions": lambda: plain() + delimited(25, b""),
    "graph-twice": lambda: plain() + delimited(GRAPH, graph_content()),
    "no-graph": lambda: with_graph(lambda _: b""),
    "cut-short": lambda: plain()[:-3],
    "fixed-cut-short": lambda: plain() + b"\x0d\x01\x02",
    "format-of-onnxruntime": lambda: b"\x12\x06\x00\x00ORTM" + plain(),
    "tensor-name-twice": lambda: raw_tensor(delimited(8, b"other")),
    "sparse-tensor": lambda: with_graph(lambda _: delimited(GRAPH, graph_content() + delimited(15, b""))),
    "location-twice": lambda: changed_tensor(lambda t: t.external_data.add(key="location", value="weights.bin")),
    "location-merged": lambda: raw_tensor(
        delimited(13, delimited(1, b"location") + delimited(2, b"weights.bin") + delimited(2, b"../secret"))
    ),
    "key-unknown": lambda: changed_tensor(lambda t: t.external_data.add(key="Location", value="../secret")),
    "offset-no-number": lambda: changed_tensor(lambda t: setattr(t.external_data[1], "value", "-1")),
    "data-here-and-elsewhere": lambda: changed_tensor(lambda t: t.ClearField("data_location")),
    "elsewhere-unsaid": lambda: changed_tensor(lambda t: t.ClearField("external_data")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_parsers_could_read_differently_is_refused(name: str) -> None:
    """Our reader agrees with the parser of onnxruntime."""
    assert checked_graph(plain()).locations == {"weights.bin"}
    with pytest.raises(BundleError) as error:
        checked_graph(REFUSED[name]())
    assert error.value.code == "bad-graph"
    assert error.value.context


def test_external_kind_beyond_32_bits_is_refused() -> None:
    """A parser keeps 32 bits of 2^32 + 1, and then reads another file."""
    inside = changed_tensor(lambda t: (t.ClearField("data_location"), t.ClearField("external_data")))
    hidden = encoded(14 << 3) + encoded(2**32 + 1)
    entry = delimited(13, delimited(1, b"location") + delimited(2, b"../secret"))
    graph = next(content for number, _, content in pieces(inside) if number == GRAPH)
    tensor = next(content for number, _, content in pieces(graph) if number == 5)
    raw = inside.replace(delimited(GRAPH, graph), delimited(GRAPH, graph + delimited(5, tensor + entry + hidden)))
    read = onnx.load_model_from_string(raw).graph.initializer[1]
    assert read.external_data[0].value == "../secret"
    with pytest.raises(BundleError, match="more than 31 bits"):
        checked_graph(raw)


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", "weights.bin\0", "a/weights.bin"]
)
def test_every_other_location_is_reported(location: str) -> None:
    """So that the bundle can be refused by it."""
    found = checked_graph(model(tensors=(external_tensor(location),)).SerializeToString()).locations
    assert found != {"weights.bin"} and len(found) == 1


BODY_INPUTS = [
    helper.make_tensor_value_info("i", TensorProto.INT64, []),
    helper.make_tensor_value_info("more", TensorProto.BOOL, []),
    helper.make_tensor_value_info("state", TensorProto.FLOAT, [2]),
]


def loop(trips: str, inner: onnx.NodeProto | None = None, name: str = "y") -> onnx.NodeProto:
    """A Loop that adds ``x`` to ``x``, or runs another one, without a condition to end by."""
    last = inner or helper.make_node("Add", ["state", "x"], ["next"])
    again = helper.make_node("Identity", ["more"], ["again"])
    outputs = [
        helper.make_tensor_value_info("again", TensorProto.BOOL, []),
        helper.make_tensor_value_info("next", TensorProto.FLOAT, [2]),
    ]
    body = helper.make_graph([last, again], "body", BODY_INPUTS, outputs)
    return helper.make_node("Loop", [trips, "", "x"], [name], body=body)


def number(value: int, name: str = "count") -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, np.int64), name)


def constant(value: int, name: str = "count", **other: object) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], **(other or {"value": number(value)}))


BOUNDED = {
    "initializer": lambda: model(loop("count"), tensors=(number(3),)),
    "list-of-numbers": lambda: model(loop("count"), tensors=(helper.make_tensor("count", 7, [], [3]),)),
    "constant": lambda: model(constant(3), loop("count")),
    "constant-of-a-number": lambda: model(constant(3, value_int=3), loop("count")),
    "nested": lambda: model(loop("count", loop("count", name="next")), tensors=(number(2),)),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_loop_of_constant_length_is_accepted(name: str) -> None:
    """And it is one that onnxruntime runs to its end."""
    raw = BOUNDED[name]().SerializeToString()
    assert checked_graph(raw).locations == set()
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"x": np.ones(2, np.float32), "n": np.asarray(1, np.int64)})
    assert found.tolist() == [4.0, 4.0] if name != "nested" else np.isfinite(found).all()


UNBOUNDED = {
    "no-count": lambda: model(loop("")),
    "count-of-an-input": lambda: model(loop("n")),
    "count-computed": lambda: model(helper.make_node("Neg", ["n"], ["count"]), loop("count")),
    "too-many": lambda: model(loop("count"), tensors=(number(MAX_TRIPS + 1),)),
    "nested-too-many": lambda: model(loop("count", loop("count", name="next")), tensors=(number(300),)),
    "count-twice": lambda: model(constant(3), loop("count"), tensors=(number(2**60),)),
    "count-hidden-by-an-inner-name": lambda: model(
        loop("count", loop("i", name="next")), tensors=(number(2), number(2, "i"))
    ),
    "count-in-the-weights": lambda: model(loop("base"), tensors=(external_tensor(),)),
    "inside-an-if": lambda: model(
        helper.make_node(
            "If",
            ["flag"],
            ["y"],
            then_branch=helper.make_graph([loop("n")], "a", [], []),
            else_branch=helper.make_graph([], "b", [], []),
        )
    ),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_loop_without_a_bound_is_refused(name: str) -> None:
    """It could keep a device busy for ever."""
    with pytest.raises(BundleError) as error:
        checked_graph(UNBOUNDED[name]().SerializeToString())
    assert error.value.code == "unbounded-loop"
    assert "Loop" in str(error.value.hint)


def test_graph_inside_an_unknown_operator_is_refused() -> None:
    """How often it would run is not known."""
    body = helper.make_graph([], "body", [], [])
    with pytest.raises(BundleError, match="must not contain graphs"):
        checked_graph(model(helper.make_node("While", ["x"], ["y"], body=body)).SerializeToString())


def test_graphs_deep_inside_one_another_are_refused() -> None:
    """With an error of ours, whatever the depth."""
    node = helper.make_node("Neg", ["x"], ["y"])
    for _ in range(20):
        node = helper.make_node("Scan", ["x"], ["y"], body=helper.make_graph([node], "g", [], []), num_scan_inputs=1)
    with pytest.raises(BundleError, match="nested more than"):
        checked_graph(model(node).SerializeToString())
