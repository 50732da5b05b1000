"""Reading and writing FlatBuffers tables as plain tuples, in the field order of the schema.

Reading accepts every valid layout and trusts nothing: each offset and length is checked against the frame
before it is followed, and what is built is never larger than the frame. Writing uses one forward layout.

A table becomes a tuple with an entry per field: None for an absent string, vector, table or union; (tag, tuple)
for a union; a float or a float64 array for a Tensor; NumPy arrays for vectors of numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import numpy as np

from etalumis.ppx.errors import ProtocolError
from etalumis.ppx.schema import Field, schema

_SCALARS = {
    "bool": struct.Struct("<?"),
    "ubyte": struct.Struct("<B"),
    "int": struct.Struct("<i"),
    "uint": struct.Struct("<I"),
    "ulong": struct.Struct("<Q"),
    "double": struct.Struct("<d"),
}
_VECTORS = {"[double]": "<f8", "[int]": "<i4", "[uint]": "<u4", "[ubyte]": "<u1"}
_U16S = [struct.Struct(f"<{n}H") for n in range(64)]
_U32 = _SCALARS["uint"]
_I32 = _SCALARS["int"]
_DOUBLE = _SCALARS["double"]
_VTABLE = struct.Struct("<HH")
_DEPTH = 16
REMEMBERED = 4096  # texts, or statements' layouts, that are kept of a peer
LONGEST = 1 << 14  # bytes of a text, or of a statement, that is kept

Row = tuple[Any, ...]
Read = Callable[["Reader", int], Any]


class Reader:
    """One frame being read.

    ``strings`` keeps the text of byte strings met before (addresses recur); ``marks`` collects the places of
    scalar tensors' numbers.
    """

    __slots__ = ("data", "depth", "marks", "size", "spare", "strings")

    def __init__(self, data: bytes, strings: dict[bytes, str]) -> None:
        self.data = data
        self.marks: list[int] = []
        self.size = len(data)
        self.spare = len(data)  # bytes of text that may still be built: repeated offsets can't multiply a frame
        self.depth = 0
        self.strings = strings

    def root(self, name: str) -> Row:
        """The root table."""
        if self.size < 8:
            raise ProtocolError(f"a message of {self.size} bytes is too short")
        row: Row = _table(name)(self, _U32.unpack_from(self.data, 0)[0])
        return row

    def follow(self, place: int) -> int:
        """Where the offset stored here points to."""
        target: int = place + _U32.unpack_from(self.data, place)[0]
        if target > self.size - 4:
            raise ProtocolError("an offset points beyond the message")
        return target

    def vector(self, place: int, width: int) -> tuple[int, int]:
        """First byte and length of the vector that the offset stored here points to."""
        start = self.follow(place)
        count: int = _U32.unpack_from(self.data, start)[0]
        if count * width > self.size - start - 4:
            raise ProtocolError("a vector reaches beyond the message")
        return start + 4, count


def write(name: str, row: Row, marks: list[int] | None = None) -> bytearray:
    """A message with this root table; ``marks`` collects the places of scalar tensors' numbers."""
    out = bytearray(4)
    _U32.pack_into(out, 0, _write_table(name, row, out, marks))
    return out


# --- reading ----------------------------------------------------------------------------------------------------


@cache
def _table(name: str) -> Read:
    if name == "Tensor":
        return _read_tensor
    fields: list[tuple[int, int, Read, Any]] = []
    for field in schema().tables[name]:
        width, read = _field(field)
        fields.append((field.id, width, read, _default(field)))
    unions = tuple(field.type in schema().unions for field in schema().tables[name])

    def read_table(reader: Reader, place: int) -> Row:
        offsets, length = _offsets(reader, place)
        count = len(offsets)
        row: list[Any] = []
        for (number, width, read, default), union in zip(fields, unions, strict=True):
            offset = offsets[number] if number < count else 0
            if not offset:
                row.append(default)
                continue
            if offset < 4 or offset + width > length:
                raise ProtocolError(f"a field of {name} lies outside of its table")
            if not union:
                row.append(read(reader, place + offset))
                continue
            tag_offset = offsets[number - 1]
            if not 4 <= tag_offset < length:
                raise ProtocolError(f"a union of {name} has no tag")
            row.append(_read_union(reader, read, reader.data[place + tag_offset], place + offset))
        return tuple(row)

    return read_table


def _offsets(reader: Reader, place: int) -> tuple[tuple[int, ...], int]:
    """The field offsets and the length of the table here."""
    data, size = reader.data, reader.size
    if not 4 <= place <= size - 4:
        raise ProtocolError("a table lies outside of the message")
    vtable = place - _I32.unpack_from(data, place)[0]
    if not 0 <= vtable <= size - 4:
        raise ProtocolError("a table's vtable lies outside of the message")
    reach, length = _VTABLE.unpack_from(data, vtable)
    if reach < 4 or reach & 1 or vtable + reach > size or place + length > size:
        raise ProtocolError("a table reaches beyond the message")
    return _U16S[min((reach - 4) >> 1, 63)].unpack_from(data, vtable + 4), length


def _read_union(reader: Reader, members: Any, tag: int, place: int) -> tuple[int, Row] | None:
    if not tag:
        return None
    names = members(reader, place)
    if tag > len(names):
        raise ProtocolError(f"unknown union member {tag}; this schema ends at {len(names)} ({names[-1]})")
    reader.depth += 1
    if reader.depth > _DEPTH:
        raise ProtocolError("tables are nested too deeply")
    row = _table(names[tag - 1])(reader, reader.follow(place))
    reader.depth -= 1
    return tag, row


def _field(field: Field) -> tuple[int, Read]:
    """Width of a field in its table, and how to read it."""
    kind = field.type
    if kind in schema().enums:
        kind = "ubyte"
    if kind in _SCALARS:
        number = _SCALARS[kind]
        return number.size, lambda reader, place: number.unpack_from(reader.data, place)[0]
    if kind in _VECTORS:
        dtype = np.dtype(_VECTORS[kind])
        return 4, lambda reader, place: _read_numbers(reader, place, dtype)
    if kind in schema().unions:
        members = schema().unions[kind]
        return 4, lambda reader, place: members
    readers: dict[str, Read] = {"string": _read_string, "[string]": _read_strings}
    if kind in readers:
        return 4, readers[kind]
    return 4, lambda reader, place: _table(kind)(reader, reader.follow(place))


def _default(field: Field) -> Any:
    enums = schema().enums
    if field.type in enums:
        return enums[field.type].index(field.default) if field.default else 0
    if field.type == "bool":
        return field.default == "true"
    if field.type == "double":
        return float(field.default or 0)
    return int(field.default or 0) if field.type in _SCALARS else None


def _read_string(reader: Reader, place: int) -> str:
    start, count = reader.vector(place, 1)
    raw = reader.data[start : start + count]
    text = reader.strings.get(raw)
    if text is None:
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise ProtocolError(f"a string is not UTF-8: {error}") from None
        if count <= LONGEST and len(reader.strings) < REMEMBERED:
            reader.strings[raw] = text
    return text


def _read_strings(reader: Reader, place: int) -> tuple[str, ...]:
    start, count = reader.vector(place, 4)
    texts = []
    for position in range(start, start + 4 * count, 4):
        texts.append(_read_string(reader, position))
        reader.spare -= len(texts[-1]) + 4
        if reader.spare < 0:
            raise ProtocolError("a list of strings is larger than its message")
    return tuple(texts)


def _read_numbers(reader: Reader, place: int, dtype: np.dtype[Any]) -> Any:
    start, count = reader.vector(place, dtype.itemsize)
    return np.frombuffer(reader.data, dtype, count, start)


def _read_tensor(reader: Reader, place: int) -> Any:
    offsets, length = _offsets(reader, place)
    data_offset = offsets[0] if offsets else 0
    if not data_offset:
        return None
    if not 4 <= data_offset <= length - 4:
        raise ProtocolError("a field of Tensor lies outside of its table")
    start, count = reader.vector(place + data_offset, 8)
    shape_offset = offsets[1] if len(offsets) > 1 else 0
    rank = 0
    if shape_offset:
        if not 4 <= shape_offset <= length - 4:
            raise ProtocolError("a field of Tensor lies outside of its table")
        shape_start, rank = reader.vector(place + shape_offset, 4)
    if count == 1 and rank <= 1:
        if rank and _I32.unpack_from(reader.data, shape_start)[0] != 1:
            raise ProtocolError("a tensor's shape does not fit its one number")
        reader.marks.append(start)
        return _DOUBLE.unpack_from(reader.data, start)[0]
    shape = struct.unpack_from(f"<{rank}i", reader.data, shape_start) if 0 < rank <= 32 else ()
    if rank > 32 or any(extent < 0 for extent in shape) or prod(shape) != count:
        raise ProtocolError(f"a tensor of {count} numbers says that its shape is {shape}")
    return np.frombuffer(reader.data, "<f8", count, start).reshape(shape)


# --- writing ----------------------------------------------------------------------------------------------------


def _write_table(name: str, row: Row, out: bytearray, marks: list[int] | None) -> int:
    """Append a table and what it refers to; returns its place. Children follow their parent."""
    inline, children = _cells(name, row)
    inline.sort(key=lambda cell: -cell[1].size)  # 8-byte numbers first: the table starts at 4 mod 8
    reach = 4 + 2 * (1 + max((number for number, _, _ in inline), default=-1))
    vtable = len(out)
    place = vtable + reach
    place += (4 - place) % 8
    offsets = [0] * ((reach - 4) // 2)
    length = 4
    for number, cell, _ in inline:
        offsets[number] = length
        length += cell.size
    out.extend(bytes(place + length - vtable))
    _VTABLE.pack_into(out, vtable, reach, length)
    _U16S[len(offsets)].pack_into(out, vtable + 4, *offsets)
    _I32.pack_into(out, place, place - vtable)
    for number, cell, value in inline:
        cell.pack_into(out, place + offsets[number], value)
    for number, append in children:
        slot = place + offsets[number]
        _U32.pack_into(out, slot, append(out, marks) - slot)
    return place


Cell = tuple[int, struct.Struct, Any]
Append = Callable[[bytearray, "list[int] | None"], int]


def _cells(name: str, row: Row) -> tuple[list[Cell], list[tuple[int, Append]]]:
    """What stands in the table itself, and the writers of what it points to."""
    declared = schema()
    inline: list[Cell] = []
    children: list[tuple[int, Append]] = []
    for field, value in zip(declared.tables[name], row, strict=True):
        kind = "ubyte" if field.type in declared.enums else field.type
        if kind in _SCALARS:
            if value != _default(field):
                inline.append((field.id, _SCALARS[kind], value))
        elif value is not None:
            if kind in declared.unions:
                tag, content = value
                inline.append((field.id - 1, _SCALARS["ubyte"], tag))
                kind, value = declared.unions[kind][tag - 1], content
            inline.append((field.id, _U32, 0))
            children.append((field.id, _appender(kind, value)))
    return inline, children


def _appender(kind: str, value: Any) -> Append:
    if kind in _VECTORS:
        return lambda out, marks: _append_numbers(np.ascontiguousarray(value, _VECTORS[kind]), out)
    if kind == "string":
        return lambda out, marks: _append_bytes(value.encode(), out)
    if kind == "[string]":
        return lambda out, marks: _append_strings([text.encode() for text in value], out)
    if kind == "Tensor":
        return lambda out, marks: _append_tensor(value, out, marks)
    return lambda out, marks: _write_table(kind, value, out, marks)


def _append_bytes(raw: bytes, out: bytearray) -> int:
    out.extend(bytes(-len(out) % 4))
    place = len(out)
    out.extend(_U32.pack(len(raw)))
    out.extend(raw)
    out.append(0)
    return place


def _append_numbers(array: np.ndarray[Any, Any], out: bytearray) -> int:
    out.extend(bytes((4 - len(out)) % 8 if array.itemsize == 8 else -len(out) % 4))
    place = len(out)
    out.extend(_U32.pack(array.size))
    out.extend(array.tobytes())
    return place


def _append_strings(raws: list[bytes], out: bytearray) -> int:
    out.extend(bytes(-len(out) % 4))
    place = len(out)
    out.extend(_U32.pack(len(raws)) + bytes(4 * len(raws)))
    for number, raw in enumerate(raws):
        slot = place + 4 + 4 * number
        _U32.pack_into(out, slot, _append_bytes(raw, out) - slot)
    return place


def _append_tensor(value: Any, out: bytearray, marks: list[int] | None) -> int:
    array = np.asarray(value, dtype=np.float64)
    place = len(out) + 8
    place += (4 - place) % 8
    out.extend(bytes(place + 12 - len(out)))
    _VTABLE.pack_into(out, place - 8, 8, 12)
    _U16S[2].pack_into(out, place - 4, 4, 8)
    _I32.pack_into(out, place, 8)
    data = _append_numbers(array.ravel(), out)
    if marks is not None and not array.ndim:
        marks.append(data + 4)
    _U32.pack_into(out, place + 4, data - place - 4)
    # A scalar says [1]: every peer reads that, where an empty shape is not understood by all.
    shape = _append_numbers(np.array(array.shape or (1,), dtype=np.int32), out)
    _U32.pack_into(out, place + 8, shape - place - 8)
    return place
