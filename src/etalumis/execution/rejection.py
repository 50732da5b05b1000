"""Rejection loops: markers that say where the passes of a loop begin, and which one was accepted.

A loop that draws again until what it drew is accepted has executions of any length, of which all but the last pass
counts for nothing. An engine that knows where the passes are need not pay for them; see
:mod:`etalumis.inference.rejection`. A marker changes nothing in the execution.
"""

from __future__ import annotations

from types import TracebackType

from etalumis.execution.errors import ModelError
from etalumis.execution.loop import mark
from etalumis.execution.trace import ACCEPTED, PASS


class Passes:
    """The passes of a rejection loop; see :func:`rejection`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0

    def __enter__(self) -> Passes:
        self._count = 0
        return self

    def __iter__(self) -> Passes:
        return self

    def __next__(self) -> int:
        """Begin a pass; returns how many there were before."""
        mark(PASS + self._name)
        self._count += 1
        return self._count - 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        if not self._count:
            raise ModelError(f"the rejection loop {self._name!r} ended without a pass; write `for _ in passes:` in it")
        mark(ACCEPTED + self._name)
        mark(PASS + self._name)


def rejection(name: str) -> Passes:
    """Mark a rejection loop: the pass in which it is left is the accepted one.

    ::

        with et.rejection("angle") as passes:
            for _ in passes:
                angle = et.sample(Uniform(-1.0, 1.0))
                if accepted(angle):
                    break

    What the model does later may depend on the accepted pass only, a pass on nothing of the passes before it, and
    nothing may be observed inside. Loops within loops need names of their own.

    Args:
        name: of the loop.
    """
    if not name:
        raise ValueError("a rejection loop needs a name")
    return Passes(name)
