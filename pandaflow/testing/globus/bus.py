"""The service's side of AMQP: queues, messages out, results and heartbeats in."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pika  # type: ignore[import-untyped]  # none upstream

#: The four topic exchanges of the service.
EXCHANGES = ("tasks", "commands", "results", "heartbeats")
_INCOMING = ("results", "heartbeats")
#: Seconds between looks at whether to stop, and before another attempt to connect.
_TICK = 0.1

_Channel: TypeAlias = pika.adapters.blocking_connection.BlockingChannel
#: What pika raises where the broker is away: its own errors, or the socket's.
AWAY = (pika.exceptions.AMQPError, OSError)


@dataclass(frozen=True)
class Message:
    """One message to publish."""

    exchange: str
    key: str
    body: bytes
    properties: dict[str, Any] = field(default_factory=dict)


class Bus:
    """Connections to a broker that come back when they are cut.

    Parameters
    ----------
    url
        Of the broker.
    handlers
        What to do with the body of a message, for the queues ``results`` and ``heartbeats``. A
        message is taken off the queue afterwards.
    """

    def __init__(self, url: str, handlers: dict[str, Callable[[bytes], None]]) -> None:
        self.url = url
        self._handlers = handlers
        self._lock = threading.RLock()
        self._channel: _Channel | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._consume_for_ever, daemon=True)

    def start(self) -> None:
        """Declare exchanges and queues, and begin to listen."""
        with self._lock:
            channel = self._connected()
            for exchange in EXCHANGES:
                channel.exchange_declare(exchange, "topic", durable=True)
            for queue in _INCOMING:
                channel.queue_declare(queue, durable=True)
                channel.queue_bind(queue, queue, "#")
        self._thread.start()

    def close(self) -> None:
        """Stop to listen, and disconnect."""
        self._closing.set()
        self._thread.join()
        with self._lock:
            self._disconnect()

    def declare(self, queue: str, exchange: str = "") -> None:
        """Declare a durable queue that gets what is sent to an exchange under its name."""

        def act(channel: _Channel) -> None:
            channel.queue_declare(queue, durable=True)
            if exchange:
                channel.queue_bind(queue, exchange, queue)

        self._do(act)

    def publish(self, messages: Iterable[Message]) -> None:
        """Send messages, in their order."""
        todo = list(messages)

        def act(channel: _Channel) -> None:
            while todo:
                one = todo[0]
                properties = pika.BasicProperties(delivery_mode=2, **one.properties)
                channel.basic_publish(one.exchange, one.key, one.body, properties)
                todo.pop(0)

        self._do(act)

    def _do(self, act: Callable[[_Channel], None]) -> None:
        """Act on the channel; once more on a new one if the connection was cut meanwhile."""
        with self._lock:
            try:
                act(self._connected())
            except AWAY:
                self._disconnect()
                act(self._connected())

    def _connected(self) -> _Channel:
        if self._channel is not None:
            # Read what the broker said meanwhile: that it closed the connection, for example.
            self._channel.connection.process_data_events(0)
        if self._channel is None or not self._channel.is_open:
            self._channel = _connect(self.url).channel()
        return self._channel

    def _disconnect(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            with contextlib.suppress(*AWAY):
                channel.connection.close()

    def _consume_for_ever(self) -> None:
        while not self._closing.is_set():
            try:
                self._consume()
            except AWAY:
                time.sleep(_TICK)

    def _consume(self) -> None:
        connection = _connect(self.url)
        channel = connection.channel()
        channel.basic_qos(prefetch_count=64)
        for queue in _INCOMING:
            channel.basic_consume(queue, self._received(queue))
        while not self._closing.is_set():
            connection.process_data_events(_TICK)
        connection.close()

    def _received(self, queue: str) -> Callable[..., None]:
        handle = self._handlers[queue]

        def received(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            handle(body)
            channel.basic_ack(method.delivery_tag)

        return received


def _connect(url: str) -> pika.BlockingConnection:
    parameters = pika.URLParameters(url)
    # Nobody here looks at a connection often enough to answer the broker's heartbeats.
    parameters.heartbeat = 0
    return pika.BlockingConnection(parameters)
