"""Messages to frames and back. One rule for every family: its wire code names its table, its parameters fill it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from etalumis.distributions import BY_CODE, Distribution
from etalumis.ppx import messages as m
from etalumis.ppx.errors import ProtocolError
from etalumis.ppx.schema import schema
from etalumis.ppx.wire import LONGEST, REMEMBERED, Reader, Row, write

_DOUBLE = struct.Struct("<d")


class Decoder:
    """Reads one peer's frames.

    Text that recurs (addresses) is decoded once. A frame that differs from an earlier one in its scalar numbers
    only is recognised by its other bytes, which were checked then, and costs a tenth.
    """

    def __init__(self) -> None:
        self._strings: dict[bytes, str] = {}
        self._places: dict[int, list[tuple[int, ...]]] = {}  # by frame length: where scalar numbers stood
        self._known: dict[tuple[bytes, ...], Callable[..., m.Message]] = {}

    def decode(self, frame: bytes) -> m.Message:
        """The message in a frame.

        Raises:
            ProtocolError: whatever is wrong with it.
        """
        try:
            for places in self._places.get(len(frame), ()):
                rebuild = self._known.get(_around(frame, places))
                if rebuild is not None:
                    return rebuild(*(_DOUBLE.unpack_from(frame, place)[0] for place in places))
            reader = Reader(frame, self._strings)
            (body,) = reader.root("Message")
            if body is None:
                raise ProtocolError("a message without a body")
            tag, row = body
            message = _BUILDERS[tag](row)
            if reader.marks:
                self._remember(frame, tuple(reader.marks), message)
            return message
        except ProtocolError:
            raise
        except (struct.error, IndexError, ValueError, OverflowError, TypeError) as error:
            raise ProtocolError(f"malformed message: {error}") from error

    def _remember(self, frame: bytes, places: tuple[int, ...], message: m.Message) -> None:
        if len(frame) > LONGEST:
            return
        rebuild = _rebuilder(message, len(places))
        known = self._places.setdefault(len(frame), [])
        apart = all(abs(a - b) >= 8 for n, a in enumerate(places) for b in places[:n])
        if rebuild is None or len(self._known) >= REMEMBERED or len(known) >= 8 or not apart:
            return
        self._known[_around(frame, places)] = rebuild
        if places not in known:
            known.append(places)


def _around(frame: bytes, places: tuple[int, ...]) -> tuple[bytes, ...]:
    """The bytes of a frame around its numbers, which stand in any order."""
    pieces, start = [], 0
    for place in sorted(places):
        pieces.append(frame[start:place])
        start = place + 8
    pieces.append(frame[start:])
    return tuple(pieces)


def _rebuilder(message: m.Message, numbers: int) -> Callable[..., m.Message] | None:
    """How to make such a message from its scalar numbers alone, in the order in which they were read."""
    if type(message) is m.SampleResult:
        return m.SampleResult
    if type(message) is m.Sample and not message.instance:
        distribution = message.distribution
        if not distribution.shape and not distribution.parameter_axes and numbers == len(distribution.parameters()):
            family, (address, name, _, control, *_) = type(distribution), message
            return lambda *parameters: m.Sample(address, name, family(*parameters), control)
    return None


class Encoder:
    """Writes frames for one peer; statements that differ in scalar numbers only reuse their layout."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[Any, ...], tuple[bytearray, list[int]]] = {}

    def encode(self, message: m.Message) -> bytes:
        """A frame with this message."""
        key, numbers = _variable(message)
        if key is None:
            return bytes(_write(message))
        layout = self._layouts.get(key)
        if layout is None:
            marks: list[int] = []
            layout = (_write(message, marks), marks)
            if len(self._layouts) < REMEMBERED:
                self._layouts[key] = layout
        frame, places = layout
        for place, number in zip(places, numbers, strict=True):
            _DOUBLE.pack_into(frame, place, number)
        return bytes(frame)


def _variable(message: m.Message) -> tuple[tuple[Any, ...] | None, tuple[float, ...]]:
    """A key of all that is not a scalar number in a Sample or SampleResult, and these numbers."""
    if type(message) is m.SampleResult and isinstance(message.result, (int, float)):
        return ("result",), (message.result,)
    if type(message) is m.Sample and not message.instance:
        distribution = message.distribution
        if not distribution.shape and not distribution.parameter_axes:
            return (message.address, message.name, distribution.code, message.control), distribution.pack()
    return None, ()


def _write(message: m.Message, marks: list[int] | None = None) -> bytearray:
    name = type(message).__name__
    tag = schema().unions["MessageBody"].index(name) + 1
    row = tuple(_distribution_row(field) if isinstance(field, Distribution) else field for field in message)
    if type(message) is m.Sample:
        row = (*row[:4], False, *row[4:])  # Sample.replace
    return write("Message", ((tag, row),), marks)


def _distribution_row(distribution: Distribution) -> tuple[int, Row]:
    if distribution.code > len(schema().unions["Distribution"]):
        raise ProtocolError(f"{distribution.family} can't be sent: PPX has no such family")
    return distribution.code, distribution.parameters()


def _distribution(union: tuple[int, Row] | None) -> Distribution:
    if union is None:
        raise ProtocolError("a statement without a distribution")
    code, parameters = union
    if any(parameter is None for parameter in parameters):
        raise ProtocolError(f"{BY_CODE[code].family} lacks a parameter")
    family = BY_CODE[code]
    if family.parameter_axes:  # the weight of a single category was read as a scalar, whose shape is [1], too
        parameters = tuple(np.atleast_1d(parameter) for parameter in parameters)
    return family.from_parameters(*parameters)


def _build_sample(row: Row) -> m.Sample:
    address, name, distribution, control, _, instance, ordinal = row
    return m.Sample(address or "", name or "", _distribution(distribution), control, instance, ordinal)


def _build_sample_result(row: Row) -> m.SampleResult:
    if row[0] is None:
        raise ProtocolError("a SampleResult without a value")
    return m.SampleResult(row[0])


_BUILDERS: dict[int, Callable[[Row], m.Message]] = {
    1: lambda row: m.Handshake(row[0] or "", row[1] or (), row[2] or ""),
    2: lambda row: m.HandshakeResult(row[0] or "", row[1] or "", row[2] or (), row[3] or ""),
    3: lambda row: m.Run(*row),
    4: lambda row: m.RunResult(*row),
    5: _build_sample,
    6: _build_sample_result,
    7: lambda row: m.Observe(row[0] or "", row[1] or "", _distribution(row[2]), row[3]),
    8: lambda row: m.ObserveResult(),
    9: lambda row: m.Tag(row[0] or "", row[1] or "", row[2]),
    10: lambda row: m.TagResult(),
    11: lambda row: m.Reset(),
    12: lambda row: m.Error(row[0] or ""),
}
