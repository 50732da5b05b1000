"""One storage chunk as a run of tar members: written and read as one span of bytes.

A span is a sequence of ``key.field`` members without the two closing blocks of an archive, so spans follow one
another in a shard, any span can be read on its own with one ``pread``, and to ``webdataset`` it is one sample.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping

from etalumis.storage.errors import DatasetError

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)


def pack_span(key: str, members: Mapping[str, bytes]) -> bytes:
    """The members as consecutive tar entries named ``key.field``; equal members give equal bytes."""
    parts: list[bytes] = []
    for field, payload in members.items():
        info = tarfile.TarInfo(f"{key}.{field}")
        info.size = len(payload)
        info.mode = 0o644
        parts += [info.tobuf(tarfile.USTAR_FORMAT), payload, bytes(-len(payload) % BLOCK)]
    return b"".join(parts)


def unpack_span(key: str, span: bytearray) -> dict[str, memoryview]:
    """The members of a span by field, as writable views of its bytes.

    Raises:
        DatasetError: the bytes are not tar entries of this key.
    """
    view = memoryview(span)
    members: dict[str, memoryview] = {}
    position = 0
    while position < len(span):
        try:
            info = tarfile.TarInfo.frombuf(bytes(view[position : position + BLOCK]), "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise DatasetError(f"chunk {key}: no tar entry {position} bytes into it ({error})") from error
        start = position + BLOCK
        found, _, field = info.name.partition(".")
        if found != key or start + info.size > len(span):
            raise DatasetError(f"chunk {key}: unexpected tar entry {info.name!r} {position} bytes into it")
        members[field] = view[start : start + info.size]
        position = start + info.size + (-info.size % BLOCK)
    return members
