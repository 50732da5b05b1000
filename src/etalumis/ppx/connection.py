"""Talking with simulators: one socket each, time-outs on every wait, and one poller behind all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import greenlet
import zmq

from etalumis.execution import Trace
from etalumis.ppx import messages as m
from etalumis.ppx.codec import Decoder, Encoder
from etalumis.ppx.errors import ProtocolError

_TICK = 50  # milliseconds between two looks at the clock and at the process
_LARGEST = 1 << 30  # bytes of a message


class FaultError(Exception):
    """A simulator did not go on as it should; the text says what happened.

    ``sane`` is True where it still talks (it gave up in words), so that a handshake is enough to begin anew.
    """

    def __init__(self, reason: str, sane: bool = False) -> None:
        super().__init__(reason)
        self.sane = sane
        self.trace: Trace | None = None  # the draws up to then


class Switchboard:
    """Lets one thread hold many conversations: each is a coroutine that waits for its next message."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._waiting: dict[Any, greenlet.greenlet] = {}

    def wait(self, socket: Any) -> None:
        """Called within a conversation: come back when the socket has a message, or after a moment."""
        current = greenlet.getcurrent()
        assert current.parent is not None
        self._waiting[socket] = current
        self._poller.register(socket, zmq.POLLIN)
        current.parent.switch(None)

    def forget(self, conversation: greenlet.greenlet) -> None:
        """A conversation is given up."""
        for socket, waiting in list(self._waiting.items()):
            if waiting is conversation:
                del self._waiting[socket]
                self._poller.unregister(socket)

    def turn(self) -> None:
        """Resume the conversations whose messages came; all of them where none did for a moment."""
        ready = [socket for socket, _ in self._poller.poll(_TICK)] or list(self._waiting)
        for socket in ready:
            conversation = self._waiting.pop(socket)
            self._poller.unregister(socket)
            resume(conversation)


def resume(conversation: greenlet.greenlet, value: Any = None) -> Any:
    """Let a conversation go on until it waits again; returns what it waits with."""
    conversation.parent = greenlet.getcurrent()
    return conversation.switch(value)


class Connection:
    """A socket to one simulator.

    Args:
        context: of ZeroMQ.
        address: where the simulator listens.
        death: tells how the simulator's process ended; None while it runs, or where it is not ours.
        switchboard: who waits for messages when a conversation runs in a coroutine.
    """

    def __init__(
        self, context: Any, address: str, death: Callable[[], str | None], switchboard: Switchboard | None
    ) -> None:
        self._socket = socket = context.socket(zmq.REQ)
        socket.linger = 0
        socket.setsockopt(zmq.RCVTIMEO, _TICK)
        socket.setsockopt(zmq.SNDTIMEO, 1000)
        socket.setsockopt(zmq.MAXMSGSIZE, _LARGEST)
        socket.setsockopt(zmq.RECONNECT_IVL, 10)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        self._death = death
        self.switchboard = switchboard
        self._encoder, self._decoder = Encoder(), Decoder()
        socket.connect(address)

    def send(self, message: m.Message) -> None:
        """Send a message; it is our turn to speak.

        Raises:
            FaultError: it can't be sent.
        """
        try:
            self._socket.send(self._encoder.encode(message))
        except zmq.ZMQError as error:
            raise FaultError(f"can't be sent a message: {error}") from error

    def receive(self, timeout: float) -> m.Message:
        """The answer.

        Raises:
            FaultError: none came in ``timeout`` seconds, the process ended, or it can't be read.
        """
        try:
            return self._decoder.decode(self._frame(timeout))
        except ProtocolError as error:
            raise FaultError(f"sent nonsense: {error}") from error

    def close(self) -> None:
        """Drop the connection and whatever was still to be said."""
        self._socket.close(0)

    def _frame(self, timeout: float) -> bytes:
        socket, board = self._socket, self.switchboard
        flags = zmq.NOBLOCK if board is not None else 0
        deadline = None
        while True:
            try:
                frame: bytes = socket.recv(flags)
                return frame
            except zmq.Again:
                now = time.monotonic()
                if deadline is None:
                    deadline = now + timeout
                death = self._death()
                if death is not None:
                    raise FaultError(death) from None
                if now >= deadline:
                    raise FaultError(f"said nothing for {timeout:g} s") from None
                if board is not None:
                    board.wait(socket)
            except zmq.ZMQError as error:
                raise FaultError(f"can't be heard: {error}") from error
