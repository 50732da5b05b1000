"""One simulator as the engine sees it: its process where we launched it, its connection, what it can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from etalumis.execution import AddressBook
from etalumis.ppx import messages as m
from etalumis.ppx.columns import Interpreter
from etalumis.ppx.connection import Connection, FaultError, Switchboard
from etalumis.ppx.errors import SimulatorError
from etalumis.ppx.process import Guard, SimulatorProcess

SYSTEM = "etalumis"
CAPABILITIES = (m.SCRIPT, m.ERROR, m.FAMILIES)


class Launch(NamedTuple):
    """How simulators are reached: launched by a command, or listening at an address already.

    Attributes:
        command: with ``{address}`` among its words; None where ``address`` is given.
        address: of a running simulator.
        environment, directory: of the launched process.
        timeout: seconds to wait for any message.
        startup: seconds to wait for the first.
        attempts: how often to launch before giving up.
        scripted: use scripted runs where the simulator can.
    """

    command: tuple[str, ...] | None
    address: str
    environment: Mapping[str, str] | None
    directory: str | None
    timeout: float
    startup: float
    attempts: int
    scripted: bool


class Worker:
    """A simulator that is started, greeted and restarted whenever it is needed."""

    def __init__(self, number: int, launch: Launch, context: Any, guard: Guard, addresses: AddressBook) -> None:
        self.number = number
        self.timeout = launch.timeout
        self.switchboard: Switchboard | None = None
        self.interpreter = Interpreter(addresses)
        self.peer = m.HandshakeResult("", "")
        self.restarts = -1
        self._launch = launch
        self._context = context
        self._guard = guard
        self._addresses = addresses
        self._process: SimulatorProcess | None = None
        self._connection: Connection | None = None
        self._greeted = False
        self.last_output = ""

    @property
    def scripted(self) -> bool:
        """Whether it runs scripts."""
        return self._launch.scripted and m.SCRIPT in self.peer.capabilities

    @property
    def understands_reset(self) -> bool:
        """Whether it gives an execution up when it is told ``Reset``, and goes on after it."""
        return bool(self.peer.capabilities)

    @property
    def pid(self) -> int | None:
        """The process id of a launched simulator that runs."""
        return self._process.pid if self._process is not None else None

    def ready(self) -> Connection:
        """The connection to a simulator that waits for a run.

        Raises:
            SimulatorError: it can't be started or reached.
        """
        if self._greeted:
            assert self._connection is not None
            self._connection.switchboard = self.switchboard
            return self._connection
        attempts = self._launch.attempts if self._launch.command else 1
        for attempt in range(1, attempts + 1):
            try:
                connection = self._open()
                self._greet(connection)
                return connection
            except FaultError as fault:
                self.fault(fault)
                if attempt == attempts:
                    raise self.error(f"{fault} before it answered the handshake") from fault
        raise AssertionError("unreachable")

    def fault(self, fault: FaultError) -> None:
        """Something went wrong: begin anew with it when it is needed next."""
        self._greeted = False
        if self._process is not None:
            self.last_output = self._process.output()
        if fault.sane:
            return
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.stop(grace=0.0)
            self._process = None

    def close(self) -> None:
        """Stop it where we launched it."""
        self._greeted = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.stop()
            self._process = None

    def describe(self) -> str:
        """What to call it in messages."""
        if self._launch.command is None:
            return f"the simulator at {self._launch.address}"
        return f"simulator {self.number} ({' '.join(self._launch.command)})"

    def error(self, reason: str, trace_index: int | None = None) -> SimulatorError:
        """An error that tells the simulator's last words, in the execution of a trace where one is to blame."""
        output = self.last_output if self._process is None else self._process.output()
        if self._launch.command is None:
            hint = "is it running, and does it serve one engine only?"
            return SimulatorError(f"{self.describe()} {reason}; {hint}", trace_index)
        tail = f"its last output:\n{output}" if output else "it printed nothing"
        return SimulatorError(f"{self.describe()} {reason}; {tail}", trace_index)

    def _open(self) -> Connection:
        launch = self._launch
        if self._connection is None:
            address = launch.address
            if launch.command is not None:
                self.restarts += 1
                path = (
                    self._guard.folder / f"{self.number}-{self.restarts}"
                )  # its predecessor's socket is dead, not gone
                address = f"ipc://{path}"
                command = [word.replace("{address}", address) for word in launch.command]
                self._process = SimulatorProcess(self._guard, command, launch.environment, launch.directory)
            process = self._process
            death: Callable[[], str | None] = (lambda: None) if process is None else process.death
            self._connection = Connection(self._context, address, death, self.switchboard)
        self._connection.switchboard = self.switchboard
        return self._connection

    def _greet(self, connection: Connection) -> None:
        for _ in range(3):
            connection.send(m.Handshake(SYSTEM, CAPABILITIES, m.VERSION))
            reply = connection.receive(self._launch.startup)
            if type(reply) is m.HandshakeResult:
                self.peer = reply
                self.interpreter = Interpreter(self._addresses)
                self._greeted = True
                return
            if type(reply) is not m.Reset:  # it was in the middle of something, which is over now
                raise FaultError(f"answered a handshake by {type(reply).__name__}")
        raise FaultError("answers handshakes by Reset")
