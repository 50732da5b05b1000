"""What can go wrong with data on disk, each naming its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DatasetError(RuntimeError):
    """A folder or file does not hold what its manifest, or the caller, says."""


class SimulationError(RuntimeError):
    """A simulator failed, or a process that ran it died; what was finished is kept."""


# What reading bytes of any other form may raise, deep inside.
MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError, MemoryError)


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Say where an error of the system was met, and what can be done.

    Raises:
        DatasetError: in place of OSError.
    """
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"while {output} was written: {error}. If the disk is full, free some space; what was finished is kept, "
            "and the same command again goes on"
        ) from error
