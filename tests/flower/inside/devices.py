"""Nodes in this process: a real ``ClientApp`` receives and returns messages as bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

Data = dict[str, np.ndarray]


def over_the_wire(message: Message) -> Message:
    """A message as it arrives at the other side."""
    return message_from_proto(ProtoMessage.FromString(message_to_proto(message).SerializeToString()))


def context_of(node: int) -> Context:
    return Context(run_id=1, node_id=node, node_config={"partition-id": node}, state=RecordDict(), run_config={})


def ask(app: ClientApp, message: Message) -> Message:
    """Return a node's reply, or Flower's error if its app fails."""
    try:
        reply = app(over_the_wire(message), context_of(message.metadata.dst_node_id))
    except Exception as failure:
        reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(failure)), reply_to=message)
    return over_the_wire(reply)


@dataclass
class Devices:
    """A grid of as many nodes as there are shares of the data; ``change`` sees each answer before the server does."""

    app: ClientApp
    count: int
    change: Callable[[Message], Message] = field(default=lambda reply: reply)

    def get_node_ids(self) -> Iterable[int]:
        return range(self.count)

    def send_and_receive(self, messages: Iterable[Message], **_: Any) -> list[Message]:
        return [self.change(ask(self.app, message)) for message in messages]


def shares(data: Data, count: int) -> list[Data]:
    """The examples, dealt out in turn."""
    return [{name: array[number::count] for name, array in data.items()} for number in range(count)]
