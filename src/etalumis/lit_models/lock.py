"""One command at a time for an output folder."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etalumis.conf.build import ConfigError


@contextmanager
def locked(path: Path, taken: str) -> Iterator[int]:
    """Hold a file; yields its descriptor.

    The system lets go of it when the last process that has it has ended, however that came about: a file that is left
    locks nothing.

    Args:
        path: the file; made where absent, with its folder.
        taken: what to say where another process holds it.

    Raises:
        ConfigError: another process holds it, or the file system knows no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(taken) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            raise ConfigError(
                f"{path.parent} lies on a file system without locks ({error.strerror}), which keep two commands from "
                "writing there at once: mount it with them (Lustre: -o flock; NFS: its lock service), or give another "
                "folder"
            ) from error
        yield lock
    finally:
        os.close(lock)
