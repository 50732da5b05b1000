"""Simulator processes: launched in a group of their own, listened to, and stopped for certain."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import IO

from etalumis.ppx.errors import SimulatorError

_KEPT = 8192  # bytes of output kept
_GRACE = 2.0  # seconds to end after SIGTERM


# Remembers the process groups that it is told of; when it is told to end, or the pipe from the engine closes, however
# the engine ended, it kills those that are left and removes the folder of their sockets.
_GUARD = """
live=
while read -r sign group; do
    [ "$sign" = . ] && break
    rest=
    for known in $live; do [ "$known" = "$group" ] || rest="$rest $known"; done
    if [ "$sign" = + ]; then live="$rest $group"; else live=$rest; fi
done
for group in $live; do kill -s KILL -- "-$group" 2>/dev/null; done
rm -rf -- "$1"
"""


class Guard:
    """Sees to it that no simulator outlives its engine, even one that was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @cached_property
    def folder(self) -> Path:
        """A private folder for the simulators' sockets, removed at the end."""
        return Path(mkdtemp(prefix="etalumis-"))

    def watch(self, group: int) -> None:
        """A simulator was launched."""
        if self._process is None:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "sh", str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._tell(f"+ {group}")

    def forget(self, group: int) -> None:
        """A simulator has ended: its number may be another's soon."""
        self._tell(f"- {group}")

    def close(self) -> None:
        """No simulator is left."""
        if self._process is not None and self._process.stdin is not None:
            self._tell(".")  # the pipe alone does not tell: a forked child of the engine holds it, too
            with suppress(OSError):
                self._process.stdin.close()
            try:
                self._process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        elif "folder" in self.__dict__:  # made for a simulator that could not be started
            self.folder.rmdir()

    def _tell(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):  # somebody killed the guard
                self._process.stdin.write(f"{line}\n".encode())
                self._process.stdin.flush()


class SimulatorProcess:
    """A running simulator and the last of what it printed.

    Args:
        guard: told of its launch and its end.
        command: program and arguments.
        environment: variables added to those of this process.
        directory: to run in.

    Raises:
        SimulatorError: the program can't be started.
    """

    def __init__(
        self, guard: Guard, command: Sequence[str], environment: Mapping[str, str] | None, directory: str | None
    ) -> None:
        self.command = shlex.join(command)
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment} if environment else None,
                cwd=directory,
                start_new_session=True,  # its own group: Ctrl-C is ours to decide about, and helpers end with it
            )
        except OSError as error:
            raise SimulatorError(f"the simulator can't be started: {self.command}: {error}") from error
        self._guard = guard
        guard.watch(self._process.pid)
        self._tail: deque[bytes] = deque()
        self._kept = 0
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def death(self) -> str | None:
        """How the process ended, or None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        if code >= 0:
            return f"ended with exit code {code}"
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"

    def output(self) -> str:
        """The last of its output."""
        if self._process.poll() is not None:
            self._reader.join(timeout=0.5)  # its last words may still be in the pipe
        return b"".join(tuple(self._tail)).decode(errors="replace")[-_KEPT:].strip()

    def stop(self, grace: float = _GRACE) -> None:
        """End the whole group: asked first where ``grace`` > 0, then killed."""
        if grace > 0.0 and self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
        self._signal(signal.SIGKILL)  # also what it left behind
        with suppress(subprocess.TimeoutExpired):  # one that the kernel does not let go yet stays the guard's
            self._process.wait(_GRACE)
            self._guard.forget(self._process.pid)
        self._reader.join(timeout=1.0)
        if not self._reader.is_alive():
            assert self._process.stdout is not None
            self._process.stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _listen(self, stream: IO[bytes]) -> None:
        with suppress(ValueError, OSError):  # closed while reading
            while piece := os.read(stream.fileno(), 4096):
                self._tail.append(piece)
                self._kept += len(piece)
                while self._kept - len(self._tail[0]) > _KEPT:
                    self._kept -= len(self._tail.popleft())
