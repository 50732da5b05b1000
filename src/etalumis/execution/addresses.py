"""Addresses: where in a simulator's code a statement stands, and the dictionary that interns them.

A full address is (base address, family, instance). The base names the place in the code: for Python models the
chain of calls from the model function to the statement, each frame as ``qualified name+line`` with the line
relative to its function, so that editing other functions, another interpreter, or another machine changes
nothing; or an explicit string. The instance counts statements of one (base, family) within one execution.
"""

from __future__ import annotations

import gc
import hashlib
import threading
from collections.abc import Iterator, Sequence
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

SAMPLE = "sample"
OBSERVE = "observe"
TAG = "tag"

# PEP 709 inlines these frames from Python 3.12 on: leaving them out keeps addresses equal across versions.
_INLINED = frozenset({"<listcomp>", "<dictcomp>", "<setcomp>"})


class Address(NamedTuple):
    """A full address. ``instance`` counts from 1; ``kind`` is "sample", "observe" or "tag"."""

    base: str
    family: str
    instance: int
    kind: str = SAMPLE

    @property
    def frames(self) -> tuple[str, ...]:
        """The stack frames of the base address, outermost first."""
        inner = self.base[1:-1] if self.base.startswith("[") and self.base.endswith("]") else self.base
        return tuple(part for part in (piece.strip() for piece in inner.split(";")) if part)

    def __str__(self) -> str:
        return f"{self.base}__{self.family}__{self.instance}"


class Site:
    """A statement in the code: one (base, family, kind) and the ids of its instances met so far."""

    __slots__ = ("base", "family", "ids", "kind")

    def __init__(self, base: str, family: str, kind: str) -> None:
        self.base = base
        self.family = family
        self.kind = kind
        self.ids: list[int] = []


class AddressBook:
    """Interns full addresses as consecutive integers; owned by a model, a dataset or a network.

    Interning is safe from several threads; reading needs no lock.
    """

    def __init__(self) -> None:
        self.entries: list[Address] = []
        self._ids: dict[Address, int] = {}
        self._sites: dict[str, dict[tuple[str, str], Site]] = {SAMPLE: {}, OBSERVE: {}, TAG: {}}
        self._hashes: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, identifier: int) -> Address:
        return self.entries[identifier]

    def __iter__(self) -> Iterator[Address]:
        return iter(self.entries)

    def __contains__(self, address: Address) -> bool:
        return address in self._ids

    def find(self, address: Address) -> int | None:
        """The id of an address, or None where it is unknown."""
        return self._ids.get(address)

    def intern(self, base: str, family: str, instance: int, kind: str = SAMPLE) -> int:
        """The id of an address, made new where it is unknown."""
        address = Address(base, family, instance, kind)
        with self._lock:
            identifier = self._ids.get(address)
            if identifier is None:
                identifier = self._ids[address] = len(self.entries)
                self.entries.append(address)
            return identifier

    def site(self, base: str, family: str, kind: str = SAMPLE) -> Site:
        """The statement of this base, family and kind."""
        sites = self._sites[kind]
        site = sites.get((base, family))
        if site is None:
            with self._lock:
                site = sites.setdefault((base, family), Site(base, family, kind))
        return site

    def instance(self, site: Site, count: int) -> int:
        """The id of the statement's instance ``count`` (from 0) where ``site.ids`` does not have it yet."""
        ids = site.ids
        while len(ids) <= count:
            following = len(ids)
            identifier = self.intern(site.base, site.family, following + 1, site.kind)
            with self._lock:
                if len(ids) == following:
                    ids.append(identifier)
        return ids[count]

    def merge(self, other: AddressBook) -> NDArray[np.int32]:
        """Intern every address of ``other``; returns, shape (len(other),), our id of each of its ids."""
        return np.array([self.intern(*entry) for entry in other.entries], dtype=np.int32)

    def hashes(self) -> NDArray[np.uint64]:
        """A 64-bit hash of each address, equal in every process and on every machine."""
        known = len(self._hashes)
        if known < len(self.entries):
            fresh = [_hash(address) for address in self.entries[known:]]
            self._hashes = np.concatenate([self._hashes, np.array(fresh, dtype=np.uint64)])
        return self._hashes

    def __reduce__(self) -> tuple[Any, ...]:
        return AddressBook.from_json, (self.to_json(),)

    def to_json(self) -> dict[str, Any]:
        """Plain lists; every base address is stored once."""
        bases: dict[str, int] = {}
        rows = [[bases.setdefault(a.base, len(bases)), a.family, a.instance, a.kind] for a in self.entries]
        return {"bases": list(bases), "addresses": rows}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> AddressBook:
        """The inverse of :meth:`to_json`."""
        book = cls()
        bases = cast("Sequence[str]", data["bases"])
        for position, (base, family, instance, kind) in enumerate(data["addresses"]):
            if book.intern(str(bases[base]), str(family), int(instance), str(kind)) != position:
                raise ValueError(f"address dictionary holds entry {position} twice")
        return book


class CallChains:
    """Finds the base address of a statement from the Python frames between it and the model function.

    A chain is recognised by its code objects and instruction offsets and spelled out once. One per model.
    """

    __slots__ = ("_bases", "_root")

    def __init__(self, root: CodeType) -> None:
        self._root = root
        # The code objects are kept beside the spelled-out base: their identities are the key.
        self._bases: dict[tuple[int, ...], tuple[str, list[CodeType]]] = {}

    def base(self, frame: FrameType) -> str:
        """The base address of the statement whose calling frame this is."""
        root = self._root
        key: list[int] = []
        caller: FrameType | None = frame
        while caller is not None:
            code = caller.f_code
            if code is root:
                break
            key.append(id(code))
            key.append(caller.f_lasti)
            caller = caller.f_back
        found = self._bases.get(tuple(key))
        if found is None:
            found = self._bases[tuple(key)] = self._spell(frame)
        return found[0]

    def _spell(self, frame: FrameType) -> tuple[str, list[CodeType]]:
        parts: list[str] = []
        codes: list[CodeType] = []
        line: int | None = None  # of the innermost inlined frame: where the inlining function would be
        caller: FrameType | None = frame
        while caller is not None and caller.f_code is not self._root:
            code = caller.f_code
            codes.append(code)
            line = caller.f_lineno if line is None else line
            if code.co_name not in _INLINED:
                parts.append(f"{qualified_name(code)}+{line - code.co_firstlineno}")
                line = None
            caller = caller.f_back
        return "; ".join(reversed(parts)), codes


def qualified_name(code: CodeType) -> str:
    """The qualified name of the function that this code belongs to."""
    return str(getattr(code, "co_qualname", None) or searched_name(code))


def searched_name(code: CodeType) -> str:
    """The same before Python 3.11, where code does not know it: from a function that has this code."""
    owners = (owner for owner in gc.get_referrers(code) if isinstance(owner, FunctionType))
    return next((owner.__qualname__ for owner in owners), code.co_name)


def _hash(address: Address) -> int:
    text = f"{address.kind}\0{address.family}\0{address.instance}\0{address.base}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
