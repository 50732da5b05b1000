"""Whether a manifest has the form that everything else takes for granted: types, and ranges that files bound.

Checked once, where it is read. Whether it is true is another question, which :mod:`.validate` asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etalumis.storage.manifest import Manifest

_COUNTS = ("traces", "draws", "controlled", "trace_types", "shortest", "longest", "addresses_crc32", "index_crc32")


def check(manifest: Manifest) -> None:
    """Refuse a manifest of another form.

    Raises:
        ValueError: naming the first entry that is not as it must be.
    """
    for name in _COUNTS:
        _require(_count, getattr(manifest, name), name, "a whole number, 0 or more")
    _require(_all(_count), manifest.shards, "shards", "a list of sizes in bytes")
    _check_origin(manifest)
    for name, entry in _require(_mapping, manifest.observes, "observes", "an object").items():
        what = f"observes.{name}"
        _require(_mapping, entry, what, "an object")
        _require(_all(_text), entry.get("families"), f"{what}.families", "a list of names")
        _require(_all(_all(_count)), entry.get("shapes"), f"{what}.shapes", "a list of shapes")
        _require(_count, entry.get("most"), f"{what}.most", "a whole number")
    if _require(_mapping, manifest.failures, "failures", "an object"):
        failures = manifest.failures
        _require(_count, failures.get("count"), "failures.count", "a whole number")
        _require(_all(_count), failures.get("indices"), "failures.indices", "a list of trace indices")
        for said in _require(_all(_mapping), failures.get("messages"), "failures.messages", "a list of objects"):
            _require(_text, said.get("message"), "failures.messages.message", "text")
            _require(_count, said.get("count"), "failures.messages.count", "a whole number")
            _require(_count, said.get("first"), "failures.messages.first", "a whole number")
    for number, chunk in enumerate(manifest.chunks):
        for name, value in vars(chunk).items():
            if not _count(value):
                raise ValueError(f"chunk {number}: {name} is {value!r:.80}, not a whole number, 0 or more")
        if chunk.shard >= len(manifest.shards) or chunk.offset + chunk.size > manifest.shards[chunk.shard]:
            raise ValueError(
                f"chunk {number}: bytes {chunk.offset} to {chunk.offset + chunk.size} of shard {chunk.shard} are "
                "beyond the shards' ends"
            )


def _check_origin(manifest: Manifest) -> None:
    origin = manifest.origin
    _require(_text, origin.model, "origin.model", "a name")
    _require(_whole, origin.seed, "origin.seed", "a whole number")
    for name in ("num_traces", "chunk_size", "shard_bytes"):
        value = getattr(origin, name)
        if value is not None:
            _require(_count, value, f"origin.{name}", "a whole number, or null")
    _require(_mapping, origin.simulator, "origin.simulator", "an object")
    _require(_mapping, origin.encoding, "origin.encoding", "an object")
    _require(_all(_mapping), origin.sources, "origin.sources", "a list of objects")


def _require(holds: Callable[[Any], bool], value: Any, name: str, form: str) -> Any:
    if not holds(value):
        raise ValueError(f"{name} is {value!r:.80}, not {form}")
    return value


def _whole(value: Any) -> bool:
    return type(value) is int


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _all(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and all(map(holds, value))
