"""Arrays as JSON and .npy members, each in the smallest plain form that gives every bit back.

What is tried for an array, in this order; all of it is written down per array in the member ``meta.json``:

========= ==================================================================================================
alias     the same as an earlier array: nothing is stored
delta     a whole-number column as its first entry and its steps, where the steps fit a smaller type
constant  all entries equal: stored once, in the JSON
bits      booleans, eight to a byte
sparse    more than half zeros: a bit per entry (member ``name.mask``) and the other entries
narrow    whole numbers in the smallest type that holds them
half      float32 numbers that are all float16, or bfloat16 (the upper half of their bits, as uint16)
========= ==================================================================================================

With ``compression="zstd"`` each member that becomes smaller is stored compressed, as ``name.npy.zst`` (RFC 8878).
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.storage.errors import MALFORMED, DatasetError

Buffer = bytes | bytearray | memoryview
META = "meta.json"
# The head of an .npy file of version 1.0 with numbers in C order. NumPy's own reader takes any Python literal there,
# with Python's parser, which takes longer than reading a small array.
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)\{'descr': '(?P<dtype>[<|][biuf][1248])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[0-9, ]{0,200})\), \} *\n",
    re.DOTALL,
)
_NPY_PREFIX = 10  # bytes before the text of the head
COMPRESSIONS = ("none", "zstd")
LIMIT = 1 << 36
_LEVEL = 3  # of compression: beyond it, seconds buy little
_HEADER = 4096  # bytes of an .npy header at the most
_SMALL = 64  # bytes below which no packing is worth its entry in the JSON


def encode_arrays(
    arrays: Mapping[str, NDArray[Any]], meta: Any, sparse_above: float = 0.5, compression: str = "none"
) -> dict[str, bytes]:
    """Members for named arrays and a JSON value.

    Args:
        arrays: numbers and booleans of any shape; names are lower case, so that every tar reader agrees on them.
        meta: anything that JSON can say.
        sparse_above: share of zeros from which an array is stored sparsely; 1 never does.
        compression: ``"none"`` or ``"zstd"``.
    """
    members: dict[str, bytes] = {META: b""}
    specs: dict[str, dict[str, Any]] = {}
    seen: dict[bytes, str] = {}
    for name, array in arrays.items():
        assert name == name.lower(), name
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        spec: dict[str, Any] = {"dtype": array.dtype.str, "shape": list(array.shape)}
        specs[name] = spec
        if array.nbytes >= _SMALL:
            first = seen.setdefault(_digest(array), name)
            if first != name:
                spec["alias"] = first
                continue
        members |= _encode(name, array, spec, sparse_above)
    document = {"meta": meta, "arrays": specs}
    members[META] = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    return members if compression == "none" else _compressed(members)


def decode_arrays(members: Mapping[str, Buffer], limit: int = LIMIT) -> tuple[dict[str, NDArray[Any]], Any]:
    """The inverse of :func:`encode_arrays`; arrays may be writable views of the members' memory.

    Args:
        members: of one chunk.
        limit: most bytes that the arrays may take, so that a small file can't ask for all memory.

    Raises:
        DatasetError: a member is missing, does not have the form that ``meta.json`` says, or is larger than ``limit``.
    """
    try:
        document = json.loads(bytes(members[META]))
        arrays: dict[str, NDArray[Any]] = {}
        wanted = sum(_nbytes(spec) for spec in document["arrays"].values())
        if wanted > limit:
            raise ValueError(f"its arrays would take {wanted:,} bytes, and {limit:,} are allowed")
        for name, spec in document["arrays"].items():
            arrays[name] = arrays[spec["alias"]].copy() if "alias" in spec else _decode(name, spec, members)
    except KeyError as error:
        raise DatasetError(f"the chunk lacks {error}: it was not written by this format") from error
    except MALFORMED as error:  # JSON of any other form, too
        raise DatasetError(f"the chunk can't be decoded: {error}") from error
    return arrays, document["meta"]


def npy(array: NDArray[Any]) -> bytes:
    """An array as the bytes of an .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def from_npy(payload: Buffer) -> NDArray[Any]:
    """The array in an .npy file, as a view of ``payload``; object arrays are refused."""
    found = _NPY.match(payload)
    if found is None:
        raise ValueError("an .npy member of another form than this package writes")
    shape = tuple(map(int, filter(None, found["shape"].replace(b" ", b"").split(b","))))
    start = _NPY_PREFIX + int.from_bytes(found["length"], "little")
    count = math.prod(shape)
    return np.frombuffer(payload, dtype=found["dtype"].decode(), count=count, offset=start).reshape(shape)


def smallest_integer(array: NDArray[Any]) -> np.dtype[Any]:
    """The smallest integer type that holds every entry of a non-empty whole-number array."""
    least, most = array.min(), array.max()
    kind = "u" if least >= 0 else "i"
    for size in (1, 2, 4, 8):
        limits = np.iinfo(f"{kind}{size}")
        if limits.min <= least and most <= limits.max:
            return np.dtype(f"<{kind}{size}")
    raise AssertionError(array.dtype)


def _encode(name: str, array: NDArray[Any], spec: dict[str, Any], sparse_above: float) -> dict[str, bytes]:
    kind = array.dtype.kind
    assert kind in "biuf", (name, array.dtype)
    if array.nbytes < _SMALL:
        return {f"{name}.npy": npy(array)}
    if kind in "iu":
        array = _steps(array, spec)
    flat = array.reshape(-1)
    if _is_constant(flat):
        number = flat[0].item()
        spec["constant"] = number if kind != "f" or np.isfinite(number) else repr(number)
        return {}
    if kind == "b":
        spec["bits"] = True
        return {f"{name}.npy": npy(np.packbits(flat))}
    if kind in "iu":
        return {f"{name}.npy": npy(array.astype(smallest_integer(array)))}
    present = flat.view(f"<u{array.itemsize}") != 0  # bitwise, so that −0.0 is kept
    if present.mean() < 1.0 - sparse_above:
        spec["sparse"] = True
        return {f"{name}.npy": npy(_half(flat[present], spec)), f"{name}.mask.npy": npy(np.packbits(present))}
    return {f"{name}.npy": npy(_half(array, spec))}


def _is_constant(flat: NDArray[Any]) -> bool:
    """Whether all entries are equal to the bit."""
    bits = flat.view(f"u{flat.itemsize}")
    return bool(bits[-1] == bits[0]) and bool((bits == bits[0]).all())


def _digest(array: NDArray[Any]) -> bytes:
    """What equal arrays share and others don't."""
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.blake2b(array.reshape(-1).view(np.uint8).data, digest_size=16, key=head[:64]).digest()


def _half(array: NDArray[Any], spec: dict[str, Any]) -> NDArray[Any]:
    """float32 numbers in two bytes where they come back to the bit."""
    if array.dtype != np.float32 or array.nbytes < _SMALL:
        return array
    bits = array.view(np.uint32)
    for part in (bits.reshape(-1)[:_SMALL], bits):  # a glance first
        if (part & np.uint32(0xFFFF)).any():
            break
    else:
        spec["half"] = "bfloat16"
        return (bits >> np.uint32(16)).astype("<u2")
    with np.errstate(over="ignore", invalid="ignore"):
        for numbers in (array.reshape(-1)[:_SMALL], array):
            half = numbers.astype("<f2")
            if (half.astype(np.float32).view(np.uint32) != numbers.view(np.uint32)).any():
                return array
    spec["half"] = "float16"
    return half


def _whole(array: NDArray[Any], spec: Mapping[str, Any]) -> NDArray[Any]:
    """The inverse of :func:`_half`."""
    if "half" not in spec:
        return array
    if spec["half"] == "bfloat16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32)


def _nbytes(spec: Mapping[str, Any]) -> int:
    itemsize: int = np.dtype(spec["dtype"]).itemsize
    return itemsize * int(math.prod(spec["shape"]))


def _compressed(members: dict[str, bytes]) -> dict[str, bytes]:
    """The members, those that become smaller compressed; the JSON stays readable."""
    compressor = zstandard().ZstdCompressor(level=_LEVEL)
    out: dict[str, bytes] = {}
    for name, payload in members.items():
        smaller = compressor.compress(payload) if name != META else payload
        if len(smaller) < len(payload):
            out[f"{name}.zst"] = smaller
        else:
            out[name] = payload
    return out


def _array(name: str, members: Mapping[str, Buffer], limit: int) -> NDArray[Any]:
    """The array in a member, compressed or not; of at most ``limit`` bytes."""
    member = f"{name}.npy"
    if member in members or f"{member}.zst" not in members:
        return from_npy(members[member])
    payload = members[f"{member}.zst"]
    library = zstandard()
    try:
        size = library.frame_content_size(payload)
        if not 0 <= size <= limit + _HEADER:
            raise ValueError(f"member {member}.zst would take {size:,} bytes, and {limit + _HEADER:,} are allowed")
        return from_npy(bytearray(library.ZstdDecompressor().decompress(payload, max_output_size=size)))
    except library.ZstdError as error:
        raise ValueError(f"member {member}.zst is no zstd frame ({error})") from error


def zstandard() -> Any:
    """The zstandard package.

    Raises:
        DatasetError: it is not installed.
    """
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise DatasetError("zstd compression needs a package: pip install 'etalumis[storage]'") from error


def _decode(name: str, spec: dict[str, Any], members: Mapping[str, Buffer]) -> NDArray[Any]:
    dtype, shape = np.dtype(spec["dtype"]), tuple(spec["shape"])
    size = int(np.prod(shape, dtype=np.int64))
    stored = size - ("delta" in spec)
    if "constant" in spec:
        number = spec["constant"]
        array = np.full(stored, float(number) if isinstance(number, str) else number, dtype=dtype)
    else:
        array = _array(name, members, size * dtype.itemsize)
    if "bits" in spec:
        array = _bits(array, name, size)
    elif "sparse" in spec:
        present = _bits(_array(f"{name}.mask", members, size), f"{name}.mask", size)
        entries, array = _whole(array, spec), np.zeros(size, dtype=dtype)
        array[present] = entries
    else:
        array = _whole(array, spec)
    if array.size != stored:
        raise ValueError(f"array {name!r} holds {array.size} entries, not {stored}")
    if "delta" in spec:
        whole = np.empty(size, dtype=dtype)
        whole[0] = spec["delta"]
        np.cumsum(array, dtype=dtype, out=whole[1:])
        whole[1:] += whole[0]
        array = whole
    return array.astype(dtype, copy=False).reshape(shape)


def _bits(packed: NDArray[np.uint8], name: str, size: int) -> NDArray[np.bool_]:
    if packed.size != -(-size // 8):  # NumPy takes those that are not there for zeros
        raise ValueError(f"array {name!r} holds {packed.size} bytes, not the {-(-size // 8)} of {size} bits")
    return np.unpackbits(packed, count=size).view(np.bool_)


def _steps(array: NDArray[Any], spec: dict[str, Any]) -> NDArray[Any]:
    """The steps of a column of whole numbers where they are smaller than itself; its first entry into ``spec``."""
    if array.ndim != 1 or array.dtype.itemsize < 4:
        return array
    steps = np.diff(array)
    # Unsigned types wrap around and so do sums over them: the way back gives the same bits.
    narrow = smallest_integer(steps)
    if narrow.itemsize >= smallest_integer(array).itemsize and steps.min() != steps.max():
        return array
    spec["delta"] = int(array[0])
    return steps.astype(narrow)
