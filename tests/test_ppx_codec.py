"""The wire: real peers' bytes decode, ours are valid, and nothing that arrives can do harm."""

from __future__ import annotations

import contextlib
import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from flatbuffers import encode
from flatbuffers import number_types as N
from flatbuffers.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from etalumis import distributions as d
from etalumis.ppx import messages as m
from etalumis.ppx.codec import Decoder, Encoder
from etalumis.ppx.errors import ProtocolError
from etalumis.ppx.schema import schema
from etalumis.ppx.wire import write

DIALOGUES = json.loads((Path(__file__).parent / "data" / "ppx_dialogues.json").read_text())["dialogues"]
FRAMES = [(name, message) for name, dialogue in DIALOGUES.items() for message in dialogue]

SCALARS = [
    d.Normal(1.5, 2.0),
    d.Uniform(-1.0, 3.0),
    d.Categorical([0.1, 0.2, 0.7]),
    d.Poisson(4.0),
    d.Bernoulli(0.3),
    d.Beta(2.0, 5.0),
    d.Exponential(0.5),
    d.Gamma(2.0, 3.0),
    d.LogNormal(0.1, 0.2),
    d.Binomial(10, 0.25),
    d.Weibull(1.5, 0.7),
    d.TruncatedNormal(0.0, 1.0, -1.0, 2.0),
    d.Mixture([0.4, 0.6], [d.Normal(0.0, 1.0), d.Gamma(1.0, 2.0)]),
]
ARRAYS = [
    d.Normal(np.arange(6.0).reshape(2, 3), 0.5),
    d.Categorical(np.array([[0.5, 0.5], [0.1, 0.9]])),
    d.Poisson(np.array([1.0, 2.0])),
]
EVERY = [
    m.Handshake("engine", (m.SCRIPT, m.ERROR), m.VERSION),
    m.HandshakeResult("simulator", "τ → πν", (m.SCRIPT,), m.VERSION),
    m.Run(),
    m.RunResult(2.5),
    m.RunResult(None),
    m.Sample("[f()+0x1; g(double)+0x2f]", "mu", d.Normal(0.0, 1.0), False),
    m.Sample("[f()+0x1]", "mu", d.Normal(0.0, 1.0), True, 3, 17),
    m.SampleResult(3.25),
    m.SampleResult(np.arange(4.0).reshape(2, 2)),
    m.Observe("[f()+0x9]", "obs0", d.Normal(0.0, 1.0), 8.0),
    m.Observe("[f()+0x9]", "", d.Normal(0.0, 1.0), None),
    m.ObserveResult(),
    m.Tag("[f()+0x1]", "t", np.arange(3.0)),
    m.TagResult(),
    m.Reset(),
    m.Error("no more disk"),
]


def same(a, b):
    assert type(a) is type(b)
    for left, right in zip(a, b, strict=True):
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right)
        else:
            assert left == right


@pytest.mark.parametrize(("name", "message"), FRAMES, ids=[f"{n}-{k}" for k, (n, _) in enumerate(FRAMES)])
def test_recorded_dialogues_decode_to_their_fields(name, message):
    decoded = Decoder().decode(bytes.fromhex(message["hex"]))
    assert type(decoded).__name__ == message["body"]
    for field in ("address", "name", "system_name", "model_name", "control"):
        if field in message:
            assert getattr(decoded, field) == message[field]
    if "distribution" in message:
        told = dict(message["distribution"])
        assert decoded.distribution.family == told.pop("family")
        expected = [np.reshape(t["data"], t["shape"]) for t in told.values()]
        for have, want in zip(decoded.distribution.parameters(), expected, strict=True):
            np.testing.assert_array_equal(np.squeeze(have), np.squeeze(want))
    for field in ("value", "result"):
        if field in message:
            told = message[field]
            np.testing.assert_array_equal(getattr(decoded, field), None if told is None else told["data"][0])
    same(decoded, Decoder().decode(Encoder().encode(decoded)))


def test_the_schema_numbers_what_the_protocol_numbers():
    declared = schema()
    bodies = "Handshake HandshakeResult Run RunResult Sample SampleResult Observe ObserveResult Tag TagResult Reset"
    assert declared.unions["MessageBody"][:11] == tuple(bodies.split())
    assert [d.BY_CODE[n + 1].family for n in range(13)] == list(declared.unions["Distribution"])
    for family in d.FAMILIES:
        if family.code <= 11:
            names = tuple(field.name for field in declared.tables[family.family])
            assert names == family.parameter_names
    ids = {field.name: field.id for field in declared.tables["Sample"]}
    assert list(ids.items())[:5] == [("address", 0), ("name", 1), ("distribution", 3), ("control", 4), ("replace", 5)]


@pytest.mark.parametrize(
    "distribution", [*SCALARS, d.Categorical([3.0]), *ARRAYS], ids=lambda x: f"{x.family}{x.shape}"
)
def test_every_family_survives_the_wire(distribution):
    encoder, decoder = Encoder(), Decoder()
    for _ in range(3):  # generic, then by remembered layout on both sides
        for message in (m.Sample("[f]", "x", distribution), m.Observe("[f]", "y", distribution, None)):
            same(message, decoder.decode(encoder.encode(message)))


@pytest.mark.parametrize("message", EVERY, ids=lambda x: type(x).__name__)
def test_every_message_survives_the_wire(message):
    same(message, Decoder().decode(Encoder().encode(message)))


def test_the_file_identifier_is_accepted():
    frame = Encoder().encode(m.SampleResult(3.25))
    root = int.from_bytes(frame[:4], "little")
    marked = (root + 4).to_bytes(4, "little") + b"PPXF" + frame[4:]
    # Four more bytes shift the doubles off their alignment, which readers must not rely on.
    assert Decoder().decode(marked) == m.SampleResult(3.25)


def test_remembered_layouts_follow_the_numbers_and_the_text():
    encoder, decoder = Encoder(), Decoder()
    generator = random.Random(1)
    for _ in range(300):
        mean, stddev = generator.gauss(0, 1), generator.random() + 0.1
        sample = m.Sample(f"[place{generator.randrange(5)}]", "x", d.Normal(mean, stddev), generator.random() < 0.5)
        same(sample, decoder.decode(encoder.encode(sample)))
        assert decoder.decode(encoder.encode(m.SampleResult(mean))) == m.SampleResult(mean)


def test_parameters_that_no_distribution_has_are_refused_on_both_paths():
    encoder, decoder = Encoder(), Decoder()
    good = encoder.encode(m.Sample("[f]", "x", d.Normal(0.0, 2.0)))
    decoder.decode(good)
    bad = good.replace(np.float64(2.0).tobytes(), np.float64(-2.0).tobytes())
    for reader in (decoder, Decoder()):
        with pytest.raises(ProtocolError, match="stddev > 0"):
            reader.decode(bad)


def test_a_family_outside_of_the_protocol_is_refused():
    with pytest.raises(ProtocolError, match="UniformInteger"):
        Encoder().encode(m.Sample("[f]", "x", d.UniformInteger(0, 3)))


def test_unknown_union_members_are_named():
    frame = bytearray(Encoder().encode(m.Reset()))
    place = frame.index(11, 8)
    frame[place] = 99
    with pytest.raises(ProtocolError, match="unknown union member 99"):
        Decoder().decode(bytes(frame))


def test_repeated_offsets_cannot_multiply_a_frame():
    text = "x" * 1000
    frame = write("Message", ((1, ("", tuple([text] * 50), "")),))
    raw = bytes(frame)
    first = raw.index(b"x" * 1000) - 4
    start = raw.index((50).to_bytes(4, "little")) + 4
    folded = bytearray(raw[: first + 1005])
    for n in range(50):
        slot = start + 4 * n
        folded[slot : slot + 4] = (first - slot).to_bytes(4, "little")
    with pytest.raises(ProtocolError, match="larger than its message"):
        Decoder().decode(bytes(folded))


def kept(decoder: Decoder, messages) -> int:
    """Bytes that a decoder keeps of these messages."""
    frames = [Encoder().encode(message) for message in messages]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for frame in frames:
        decoder.decode(frame)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return after - before


def test_decoders_do_not_keep_all_that_they_read():
    decoder = Decoder()
    assert kept(decoder, (m.Error(f"{n:0100000d}") for n in range(100))) < 1_000_000
    assert kept(decoder, (m.Sample(f"{n:0100000d}", "x", d.Normal(0.0, 1.0)) for n in range(100))) < 1_000_000
    assert kept(decoder, (m.Error(f"{n:0100d}") for n in range(5000))) > 100_000
    assert kept(decoder, (m.Error(f"{n:0100d}") for n in range(5000, 10_000))) < 100_000


def survive(frame: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        Decoder().decode(frame)


@given(st.binary(max_size=400))
@settings(max_examples=500, deadline=None)
def test_arbitrary_bytes_are_a_protocol_error(frame):
    survive(frame)


@given(st.integers(0, len(FRAMES) - 1), st.data())
@settings(max_examples=500, deadline=None)
def test_truncated_messages_are_a_protocol_error_or_harmless(number, data):
    frame = bytes.fromhex(FRAMES[number][1]["hex"])
    survive(frame[: data.draw(st.integers(0, len(frame)))])


def mutants(count: int, seed: int):
    """Frames with bytes flipped, words replaced by extreme numbers, pieces cut, doubled or spliced."""
    generator = random.Random(seed)
    frames = [bytes.fromhex(message["hex"]) for _, message in FRAMES]
    frames += [Encoder().encode(message) for message in EVERY]
    extreme = [0, 1, 4, 0x7F, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFC, 0x10000]
    for _ in range(count):
        frame = bytearray(generator.choice(frames))
        for _ in range(generator.randint(1, 4)):
            place = generator.randrange(len(frame))
            kind = generator.randrange(4)
            if kind == 0:
                frame[place] ^= 1 << generator.randrange(8)
            elif kind == 1:
                place &= ~3
                frame[place : place + 4] = generator.choice(extreme).to_bytes(4, "little")
            elif kind == 2 and len(frame) > 8:
                del frame[place : place + generator.randint(1, 8)]
            else:
                other = generator.choice(frames)
                frame[place:place] = other[: generator.randint(1, 16)]
            frame = frame or bytearray(1)
        yield bytes(frame)


def test_mutated_messages_never_crash():
    for frame in mutants(20_000, seed=1):
        survive(frame)


@pytest.mark.slow
def test_many_mutated_messages_never_crash():
    for frame in mutants(150_000, seed=2):
        survive(frame)


def test_frames_are_flatbuffers_to_the_reference_library():
    """The public runtime, which knows nothing of our writer, finds every field where the schema puts it."""
    sample = m.Sample("[forward()+0x96]", "mu", d.Normal(1.5, 2.25), False)
    frame = Encoder().encode(sample)
    message = Table(frame, encode.Get(N.UOffsetTFlags.packer_type, frame, 0))

    def field(table: Table, number: int) -> int:
        offset = table.Offset(4 + 2 * number)
        assert offset, f"field {number} is missing"
        return offset

    def child(table: Table, number: int) -> Table:
        return Table(frame, table.Indirect(table.Pos + field(table, number)))

    def scalar(tensor: Table) -> float:
        start = tensor.Vector(field(tensor, 0))
        assert tensor.VectorLen(field(tensor, 0)) == 1
        assert start % 8 == 0, "doubles stand at multiples of their size"
        return tensor.Get(N.Float64Flags, start)

    assert message.Get(N.Uint8Flags, message.Pos + field(message, 0)) == 5
    body = child(message, 1)
    assert body.String(body.Pos + field(body, 0)) == sample.address.encode()
    assert body.String(body.Pos + field(body, 1)) == b"mu"
    assert body.Get(N.Uint8Flags, body.Pos + field(body, 2)) == 1
    normal = child(body, 3)
    assert (scalar(child(normal, 0)), scalar(child(normal, 1))) == (1.5, 2.25)
    assert not body.Get(N.BoolFlags, body.Pos + field(body, 4))


GOLDEN = Path(__file__).parent / "data" / "golden_messages.json"


def golden() -> dict[str, m.Message]:
    """A message of every kind, and a Sample and an Observe of every family, by what they are called in the file."""
    found: dict[str, m.Message] = {f"{k:02d} {type(message).__name__}": message for k, message in enumerate(EVERY)}
    for distribution in SCALARS + ARRAYS:
        called = f"{distribution.family}{list(distribution.shape)}"
        found[f"Sample {called}"] = m.Sample("[f()+0x1]", "x", distribution)
        found[f"Observe {called}"] = m.Observe("[f()+0x2]", "y", distribution, None)
    return found


def test_frames_stay_what_they_were() -> None:
    """To the byte: what peers have stored or signed, and what the C++ side is driven with, does not drift."""
    frames = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert frames.keys() == golden().keys()
    for called, message in golden().items():
        assert Encoder().encode(message).hex() == frames[called], called
        same(message, Decoder().decode(bytes.fromhex(frames[called])))
