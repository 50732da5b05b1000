"""A minimal engine for the tests of simulators: one socket, one process, no policy."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq

from etalumis.execution import AddressBook
from etalumis.ppx import messages as m
from etalumis.ppx import scripted as s
from etalumis.ppx.codec import Decoder, Encoder
from etalumis.ppx.columns import Interpreter
from etalumis.ppx.conversion import Answer, to_batch


class Client:
    """Launches ``command`` with a socket's address as its last word and talks with it."""

    def __init__(self, command: Sequence[str | Path], folder: Path) -> None:
        address = f"ipc://{folder}/socket"
        self.process = subprocess.Popen([*map(str, command), address], stderr=subprocess.PIPE, text=True)
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.REQ)
        self.socket.linger = 0
        self.socket.rcvtimeo = 20_000
        self.socket.connect(address)
        self.encoder, self.decoder = Encoder(), Decoder()
        self.addresses = AddressBook()
        self.interpreter = Interpreter(self.addresses)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.socket.close()
        self.context.term()
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def send_raw(self, frame: bytes) -> m.Message:
        self.socket.send(frame)
        return self.decoder.decode(self.socket.recv())

    def ask(self, message: m.Message) -> m.Message:
        return self.send_raw(self.encoder.encode(message))

    def greet(self, *capabilities: str) -> m.HandshakeResult:
        reply = self.ask(m.Handshake("test", capabilities, m.VERSION))
        assert isinstance(reply, m.HandshakeResult)
        self.interpreter = Interpreter(self.addresses)
        return reply

    def run(self, answer: Callable[[m.Message], m.Message]) -> tuple[list[m.Message], m.Message]:
        """One interactive run: its statements, and the message after the last."""
        statements = []
        message = self.ask(m.Run())
        while isinstance(message, (m.Sample, m.Observe, m.Tag)):
            statements.append(message)
            message = self.ask(answer(message))
        return statements, message

    def script(self, answer: Callable[[m.Sample], m.Message] | None = None, count: int = 1, **fields: Any) -> Answer:
        """A scripted run as a batch; ``answer`` is asked where control comes back."""
        message = self.ask(m.Run(tuple(s.Request(executions=count, **fields))))
        while isinstance(message, m.Sample):
            assert answer is not None
            message = self.ask(answer(message))
        assert isinstance(message, m.RunResult), message
        assert message.columns is not None
        return to_batch(self.interpreter.read(message.columns, fields.get("first_index", 0), count))
