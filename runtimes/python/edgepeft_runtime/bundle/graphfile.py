"""Check an untrusted ONNX graph without the onnx package: which files it reads, its interface, that its loops end.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. A bundle's graphs have no functions, no sparse
tensors and no training information (section 1 of the SPEC), so the schema here has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edgepeft_runtime.bundle.plan import GraphInterface
from edgepeft_runtime.errors import BadGraph, BundleError, UnboundedLoop
from edgepeft_runtime.files.wire import BYTES, FIXED32, FIXED64, VARINT, Bytes, Field, fields, varint
from edgepeft_runtime.shown import printable, quoted

MAX_TRIPS = 2**16
"""Largest number of runs of a Loop's body, multiplied by those of the loops around it."""

MAX_DEPTH = 16
"""Largest depth of nested graphs."""

_ORT_FORMAT = b"ORTM"
_INT64, _EXTERNAL = 7, 1
_TEXT, _TEXTS, _INT = Field(BYTES), Field(BYTES, repeated=True), Field(VARINT)
_INTS = Field(VARINT, repeated=True)


def _one(message: str) -> Field:
    return Field(BYTES, message=message)


def _many(message: str) -> Field:
    return Field(BYTES, repeated=True, message=message)


_SCHEMA: dict[str, dict[int, Field]] = {
    "Model": {1: _INT, 2: _TEXT, 3: _TEXT, 4: _TEXT, 5: _INT, 6: _TEXT, 7: _one("Graph"), 8: _TEXTS, 14: _TEXTS},
    "Graph": {1: _many("Node"), 2: _TEXT, 5: _many("Tensor"), 10: _TEXT, 11: _many("ValueInfo")}
    | {12: _many("ValueInfo")}
    | dict.fromkeys((13, 14, 16), _TEXTS),
    "Node": {1: _TEXTS, 2: _TEXTS, 3: _TEXT, 4: _TEXT, 5: _many("Attribute"), 6: _TEXT, 7: _TEXT, 8: _TEXT, 9: _TEXTS},
    "Attribute": {1: _TEXT, 2: Field(FIXED32), 3: _INT, 4: _TEXT, 5: _one("Tensor"), 6: _one("Graph")}
    | {7: Field(FIXED32, repeated=True), 8: _INTS, 9: _TEXTS, 10: _many("Tensor"), 11: _many("Graph")}
    | {13: _TEXT, 14: _TEXT, 15: _TEXTS, 20: _INT},
    "Tensor": {1: _INTS, 2: _INT, 4: Field(FIXED32, repeated=True), 5: _INTS, 6: _TEXTS, 7: _INTS, 8: _TEXT, 9: _TEXT}
    | {10: Field(FIXED64, repeated=True), 11: _INTS, 12: _TEXT, 13: _many("Entry"), 14: _INT, 16: _TEXTS},
    "Entry": {1: _TEXT, 2: _TEXT},
    "ValueInfo": {1: _TEXT, 2: _TEXT, 3: _TEXT, 4: _TEXTS},
}

Name = bytes
Scope = Mapping[Name, int | None]
"""Values by name: the integer of a constant, ``None`` for anything else."""


@dataclass(frozen=True)
class GraphFacts:
    """The facts of a graph that a bundle needs.

    Attributes:
        locations: the files in which tensors are stored.
        interface: the names of its inputs, without those that have a default value, and of its outputs.
    """

    locations: frozenset[str]
    interface: GraphInterface


@dataclass(frozen=True)
class NodeFacts:
    """A node: its name, its operator, and the names of its inputs and outputs."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def nodes_of(model: bytes | memoryview) -> list[NodeFacts]:
    """Return the nodes of the outermost graph of a serialized ``ModelProto`` that was checked."""
    found = []
    for number, graph in fields(memoryview(model), "Model", _SCHEMA):
        for kind, node in fields(_bytes(graph), "Graph", _SCHEMA) if number == 7 else ():
            if kind == 1:
                found.append(_facts(_bytes(node)))
    return found


def _facts(node: Bytes) -> NodeFacts:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}
    for number, content in fields(node, "Node", _SCHEMA):
        if number in texts:
            texts[number].append(_text(bytes(_bytes(content))))
    return NodeFacts("".join(texts[3]), "".join(texts[4]), tuple(texts[1]), tuple(texts[2]))


def checked_graph(model: bytes | memoryview) -> GraphFacts:
    """Return the facts about a serialized ``ModelProto``.

    Raises:
        BundleError: the bytes are not such a message, or parsers could read them differently (``bad-graph``), or a loop
            has no bound (``unbounded-loop``).
    """
    data = memoryview(model)
    try:
        if bytes(data[4:8]) == _ORT_FORMAT:
            raise ValueError("it could be mistaken for a model in ONNX Runtime's own format")
        locations: set[str] = set()
        graphs = [content for number, content in fields(data, "Model", _SCHEMA) if number == 7]
        if not graphs:
            raise ValueError("it has no graph")
        graph = _Graph(locations, 1, 1)
        graph.read(_bytes(graphs[0]), {})
        return GraphFacts(frozenset(locations), graph.interface())
    except ValueError as failure:
        raise BadGraph(
            "A graph of the bundle is not an ONNX model of the form that bundles allow.",
            context=str(failure),
            hint="do not use this bundle, or prepare it again.",
        ) from None


@dataclass(frozen=True)
class _Parent:
    """A node that contains graphs: its operator, its first input, and the graphs."""

    op_type: str
    trips: Name
    graphs: tuple[Bytes, ...]


@dataclass
class _Graph:
    """A walk over one graph.

    Args:
        locations: collects the files that tensors are stored in.
        trips: largest number of runs, given the loops around it.
        depth: depth of nesting; 1 for the outermost graph.
    """

    locations: set[str]
    trips: int
    depth: int
    _names: dict[Name, int | None] = field(default_factory=dict)
    _parents: list[_Parent] = field(default_factory=list)
    _inputs: list[Name] = field(default_factory=list)
    _outputs: list[Name] = field(default_factory=list)
    _stored: set[Name] = field(default_factory=set)

    def read(self, data: Bytes, outer: Scope) -> None:
        """Check a graph, then the graphs inside it, which can refer to its names."""
        if self.depth > MAX_DEPTH:
            raise ValueError(f"graphs are nested more than {MAX_DEPTH} levels deep")
        for number, content in fields(data, "Graph", _SCHEMA):
            if number == 1:
                self._node(_bytes(content))
            elif number == 5:
                name, value = self._tensor(_bytes(content))
                self._define(name, value)
                self._stored.add(name)
            elif number == 11:
                self._inputs.append(_value_name(_bytes(content)))
                self._define(self._inputs[-1], None)
            elif number == 12:
                self._outputs.append(_value_name(_bytes(content)))
        scope = {**outer, **self._names}
        for parent in self._parents:
            trips = self.trips * (_trips(parent, scope) if parent.op_type == "Loop" else 1)
            if trips > MAX_TRIPS:
                raise _unbounded(f"it runs {trips} times; at most {MAX_TRIPS} are allowed")
            for graph in parent.graphs:
                _Graph(self.locations, trips, self.depth + 1).read(graph, scope)

    def interface(self) -> GraphInterface:
        """Return the names of inputs and outputs."""
        inputs = tuple(_text(name) for name in self._inputs if name not in self._stored)
        return GraphInterface(inputs, tuple(map(_text, self._outputs)))

    def _define(self, name: Name, value: int | None) -> None:
        # A name that is defined twice is not a constant, since parsers differ in which definition counts.
        self._names[name] = None if name in self._names else value

    def _node(self, data: Bytes) -> None:
        inputs, outputs, attributes = list[Name](), list[Name](), list[Bytes]()
        texts = {4: b"", 7: b""}
        for number, content in fields(data, "Node", _SCHEMA):
            if number in (1, 2):
                (inputs if number == 1 else outputs).append(bytes(_bytes(content)))
            elif number == 5:
                attributes.append(_bytes(content))
            elif number in texts:
                texts[number] = bytes(_bytes(content))
        own = texts[7] in (b"", b"ai.onnx")
        read = [self._attribute(attribute) for attribute in attributes]
        constant = read[0][0] if texts[4] == b"Constant" and own and len(read) == 1 else None
        for name in outputs:
            self._define(name, constant)
        graphs = tuple(graph for _, inside in read for graph in inside)
        if graphs:
            if not own or texts[4] not in (b"If", b"Loop", b"Scan", b"SequenceMap"):
                raise ValueError(f"the operator {quoted(texts[4])} must not contain graphs")
            self._parents.append(_Parent(texts[4].decode(), inputs[0] if inputs else b"", graphs))

    def _attribute(self, data: Bytes) -> tuple[int | None, list[Bytes]]:
        """Return the integer of a constant's attribute, if it is one, and the graphs in the attribute."""
        values, graphs, name = list[int | None](), list[Bytes](), b""
        for number, content in fields(data, "Attribute", _SCHEMA):
            if number == 1:
                name = bytes(_bytes(content))
            elif number == 3:
                values.append(_signed(content) if name == b"value_int" else None)
            elif number in (5, 10):
                value = self._tensor(_bytes(content))[1]
                values.append(value if number == 5 and name == b"value" else None)
            elif number in (6, 11):
                graphs.append(_bytes(content))
        return values[0] if len(values) == 1 else None, graphs

    def _tensor(self, data: Bytes) -> tuple[Name, int | None]:
        """Return the name of a tensor, and its value if it is a single int64; collect the file it is stored in."""
        name, kind, external, entries, values = b"", 0, 0, list[Bytes](), list[int]()
        for number, content in fields(data, "Tensor", _SCHEMA):
            if number == 8:
                name = bytes(_bytes(content))
            elif number in (2, 14):
                kind, external = (_small(content), external) if number == 2 else (kind, _small(content))
            elif number == 13:
                entries.append(_bytes(content))
            elif number == 7:
                values += _int64s(content)
            elif number == 9 and len(_bytes(content)) == 8:
                values.append(int.from_bytes(_bytes(content), "little", signed=True))
        if (external == _EXTERNAL) != bool(entries) or external > _EXTERNAL:
            raise ValueError(f"the tensor {quoted(name)} is declared both as stored in another file and as not")
        if entries:
            self.locations.add(_location(entries))
        return name, values[0] if kind == _INT64 and len(values) == 1 and not entries else None


def _location(entries: list[Bytes]) -> str:
    """Return the file of a tensor. Repeated keys are refused, since parsers differ in which one counts."""
    entry_of: dict[bytes, bytes] = {}
    for entry in entries:
        pair = {number: bytes(_bytes(content)) for number, content in fields(entry, "Entry", _SCHEMA)}
        key = pair.get(1, b"")
        if key in entry_of or key not in (b"location", b"offset", b"length"):
            raise ValueError(f"the location of a tensor has a key that is repeated or unknown: {quoted(key)}")
        entry_of[key] = pair.get(2, b"")
    for key in (b"offset", b"length"):
        if not (entry_of.get(key, b"0").isdigit() and len(entry_of.get(key, b"0")) <= 16):
            raise ValueError(f"the {key.decode()} of a tensor is {quoted(entry_of[key])}")
    return printable(entry_of.get(b"location", b"").decode("utf-8", "replace"), keep="")


def _trips(parent: _Parent, scope: Scope) -> int:
    """Return the largest number of runs of a Loop: its first input, which must be a constant."""
    count = scope.get(parent.trips) if parent.trips else None
    if count is None:
        raise _unbounded("its trip count is not a constant")
    return max(0, count)


def _unbounded(context: str) -> BundleError:
    return UnboundedLoop(
        "A graph of the bundle contains a Loop that may never end.",
        context=context,
        hint=f"give the Loop a constant trip count of at most {MAX_TRIPS}, or use a Scan.",
    )


def _text(name: Name) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise ValueError(f"the name {quoted(name)} is not UTF-8") from None


def _value_name(data: Bytes) -> Name:
    names = [content for number, content in fields(data, "ValueInfo", _SCHEMA) if number == 1]
    return bytes(_bytes(names[0])) if names else b""


def _bytes(content: int | Bytes) -> Bytes:
    assert not isinstance(content, int)  # the schema says so
    return content


def _small(content: int | Bytes) -> int:
    """Return a number that parsers truncate to 32 bits."""
    assert isinstance(content, int)
    if content >= 2**31:
        raise ValueError("a data type or location has more than 31 bits")
    return content


def _signed(content: int | Bytes) -> int:
    assert isinstance(content, int)
    return content - 2**64 if content >= 2**63 else content


def _int64s(content: int | Bytes) -> Iterator[int]:
    """Yield the first two numbers of an int64 field, packed or not."""
    if isinstance(content, int):
        yield _signed(content)
        return
    position = count = 0
    while position < len(content) and count < 2:
        value, position = varint(content, position)
        count += 1
        yield _signed(value)
