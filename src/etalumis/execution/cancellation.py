"""Ending work from another thread than the one that does it."""

from __future__ import annotations

from multiprocessing import Pipe
from multiprocessing.connection import Connection


class Cancelled(BaseException):  # no error, and not one that the work may take for its own
    """The work was cancelled; nobody waits for its result."""


class Cancellation:
    """Told to a piece of work beforehand; whoever calls :meth:`cancel` later, from any thread, ends it.

    Attributes:
        wakes: readable once it is cancelled, for those who wait for several connections.
    """

    def __init__(self) -> None:
        self.wakes: Connection
        self.wakes, self._sender = Pipe(duplex=False)
        self._cancelled = False

    def cancel(self) -> None:
        """End the work as soon as it looks; once is enough."""
        if not self._cancelled:
            self._cancelled = True
            self._sender.send_bytes(b"\0")

    def check(self) -> None:
        """Where the work may end.

        Raises:
            Cancelled: it shall.
        """
        if self._cancelled:
            raise Cancelled
