"""Makes any Python model a PPX simulator."""

from __future__ import annotations

import logging
import math
import sys
import traceback
from collections.abc import Callable
from typing import Any

from etalumis.distributions import Distribution, Exponential, Poisson, Uniform
from etalumis.execution import Model
from etalumis.execution.loop import call_model
from etalumis.ppx import messages as m
from etalumis.ppx.codec import Decoder, Encoder
from etalumis.ppx.errors import ProtocolError
from etalumis.ppx.runner import Runner, shaped, tensor

SYSTEM = "etalumis"
CAPABILITIES = (m.SCRIPT, m.ERROR, m.FAMILIES)
_LAST_PUBLIC_FAMILY = 11  # wire code of the last family of PPX 1.0.0
_LOG = logging.getLogger(__name__)


def serve(model: Model | Callable[[], Any], address: str, idle: float | None = None) -> None:
    """Answer inference engines until interrupted.

    Args:
        model: the simulator.
        address: where engines connect to: ``ipc:///path`` or ``tcp://*:5555``.
        idle: seconds without a message after which to return; None waits for ever.

    Results and tags that are no numbers stay here: the protocol has numbers only.

    Raises:
        ProtocolError: the address can't be bound.
    """
    with Server(model if isinstance(model, Model) else Model(model), address) as server:
        server.run(idle)


class Server:
    """One bound simulator. Use as a context manager, or call :meth:`close`."""

    def __init__(self, model: Model, address: str) -> None:
        import zmq

        self._zmq = zmq
        self._model = model
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.linger = 1000
        self._socket.setsockopt(zmq.MAXMSGSIZE, 1 << 30)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise ProtocolError(
                f"can't listen at {address!r} ({error}); addresses are like ipc:///tmp/name or tcp://*:5555"
            ) from error
        self._encoder, self._decoder = Encoder(), Decoder()
        self._capabilities: tuple[str, ...] = ()
        self._runner = Runner(model, self._ask)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
        self._context.term()

    def run(self, idle: float | None = None) -> None:
        """Answer one message after the other; returns after ``idle`` seconds without one."""
        self._socket.setsockopt(self._zmq.RCVTIMEO, -1 if idle is None else int(1000 * idle))
        answers: dict[type, Callable[[Any], m.Message]] = {m.Handshake: self._shake_hands, m.Run: self._run}
        while True:
            try:
                message = self._receive()
            except self._zmq.Again:
                return
            answer = answers.get(type(message), lambda unexpected: m.Reset())
            try:
                reply = self._encoder.encode(answer(message))
            except _Silence:
                return
            except _Abandoned:
                reply = self._encoder.encode(m.Reset())
            except Exception:
                reply = self._encoder.encode(self._error(traceback.format_exc()))
            self._socket.send(reply)

    def exchange(self, message: m.Message, expected: type) -> Any:
        """Send a statement during an execution and wait for its result.

        Raises:
            _Abandoned: the engine said something else.
        """
        self._socket.send(self._encoder.encode(message))
        try:
            answer = self._receive()
        except self._zmq.Again:
            raise _Silence from None
        if type(answer) is not expected:
            raise _Abandoned
        return answer

    def check_family(self, distribution: Distribution) -> None:
        """Raise an error where the engine can't know a distribution."""
        if distribution.code > _LAST_PUBLIC_FAMILY and m.FAMILIES not in self._capabilities:
            raise ProtocolError(
                f"the engine speaks PPX 1.0.0, which has no {distribution.family}; use one of its eleven families"
            )

    def _receive(self) -> m.Message | None:
        try:
            return self._decoder.decode(self._socket.recv())
        except ProtocolError as error:
            _LOG.warning("unreadable message: %s", error)
            return None  # unexpected whatever was expected

    def _shake_hands(self, message: m.Handshake) -> m.Message:
        self._capabilities = tuple(message.capabilities)
        self._runner = Runner(self._model, self._ask)
        return m.HandshakeResult(SYSTEM, self._model.name, CAPABILITIES, m.VERSION)

    def _run(self, message: m.Run) -> m.Message:
        if message.request is not None:
            return m.RunResult(None, self._runner.run(message.request))
        return m.RunResult(tensor(call_model(self._model.function, _Wire(self, self._model))))

    def _ask(self, base: str, name: str, distribution: Distribution, instance: int, ordinal: int) -> Any:
        self.check_family(distribution)
        answer = self.exchange(m.Sample(base, name, distribution, True, instance, ordinal), m.SampleResult)
        return shaped(answer.result, distribution)

    def _error(self, text: str) -> m.Message:
        _LOG.error("%s", text)
        return m.Error(text) if m.ERROR in self._capabilities else m.Reset()


class _Abandoned(BaseException):
    """The engine gave an execution up: it said something that is no answer. The model can't catch it by accident."""


class _Silence(BaseException):
    """The engine has been silent for too long in the middle of an execution."""


class _Wire:
    """The statements of an interactive execution: each one is a message."""

    def __init__(self, server: Server, model: Model) -> None:
        self._exchange = server.exchange
        self._check_family = server.check_family
        self._chains = model.chains

    def sample(self, distribution: Distribution, name: str, control: bool, base: str | None) -> Any:
        if base is None:
            base = self._chains.base(sys._getframe(2))
        if distribution.code > _LAST_PUBLIC_FAMILY:
            self._check_family(distribution)
        return shaped(self._exchange(m.Sample(base, name, distribution, control), m.SampleResult).result, distribution)

    def observe(self, distribution: Distribution, value: Any, name: str, base: str | None) -> None:
        if base is None:
            base = self._chains.base(sys._getframe(2))
        if distribution.code > _LAST_PUBLIC_FAMILY:
            self._check_family(distribution)
        self._exchange(m.Observe(base, name, distribution, value), m.ObserveResult)

    def tag(self, value: Any, name: str, base: str | None) -> None:
        if base is None:
            base = name or self._chains.base(sys._getframe(2))
        number = tensor(value)
        if number is not None:
            self._exchange(m.Tag(base, name, number), m.TagResult)

    def mark(self, base: str) -> None:
        """The protocol has no markers: a tag at their base address stands for one."""
        self._exchange(m.Tag(base, "", 0.0), m.TagResult)

    def factor(self, log_weight: float, name: str) -> None:
        """The protocol has no factors: an observation of this log density stands for one."""
        distribution: Distribution
        if log_weight == 0.0:
            return
        if log_weight == -math.inf:
            distribution, value = Uniform(0.0, 1.0), 2.0
        elif log_weight < 0.0:
            distribution, value = Poisson(-log_weight), 0.0  # log probability of no event: −rate
        else:
            distribution, value = Exponential(math.exp(log_weight)), 0.0
        self.observe(distribution, value, name, "factor")
