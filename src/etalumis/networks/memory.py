"""Memory that training would give back to the system at every step, and get again page by page."""

from __future__ import annotations

import ctypes
import os
import sys

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # of mallopt(3)
_CHOICES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory for the next allocation; whether it does now.

    It gives arrays above 32 MB back to the system as soon as they are freed, and the system clears every page of the
    next one: a sixth of the time of a training step of the paper's CNN. The process keeps its peak afterwards. Only
    with glibc's own allocator, and only where the environment doesn't already choose (``MALLOC_…``,
    ``GLIBC_TUNABLES``, ``LD_PRELOAD``).
    """
    if not sys.platform.startswith("linux") or any(name.startswith(_CHOICES) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
