"""What can go wrong with data on disk, each naming its remedy."""

from __future__ import annotations


class DatasetError(RuntimeError):
    """A folder or file does not hold what its manifest, or the caller, says."""


class SimulationError(RuntimeError):
    """A simulator failed, or a process that ran it died; what was finished is kept."""


# What reading bytes of any other form may raise, deep inside.
MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError, MemoryError)
