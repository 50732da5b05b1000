"""Memory that reading chunk after chunk goes through."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of the options, from malloc.h
_KEPT = 1 << 30


def keep_memory() -> None:
    """Let this process keep the memory of freed arrays for the next ones, up to 1 GiB.

    By default the C library gives large arrays back to the system and gets new pages for the next, whose first use
    costs more than decoding a chunk of images into them. Without effect where the library is not glibc.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _KEPT)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)
