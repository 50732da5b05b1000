"""The counter-based stream: Philox itself, the layout of counters, and independence of the order of use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from etalumis.distributions import OBSERVE, SAMPLE, Stream

WORD = (1 << 64) - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 in whole numbers, straight from the definition (Salmon et al. 2011, section 3.3)."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * a, 1 << 64)
        high1, low1 = divmod(0xCA5A826395121157 * c, 1 << 64)
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
    return [a, b, c, d]


def uniforms(counter: list[int], key: list[int]) -> list[float]:
    return [((r >> 12) + 0.5) / 2**52 for r in philox(counter, key)]


def take(stream: Stream, count: int) -> list[float]:
    return [stream.uniform() for _ in range(count)]


@pytest.mark.parametrize(
    ("counter", "key", "output"),
    [
        (
            [0, 0, 0, 0],
            [0, 0],
            [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B],
        ),
        (
            [WORD] * 4,
            [WORD] * 2,
            [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0],
        ),
        (
            [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
            [0x452821E638D01377, 0xBE5466CF34E90C6C],
            [0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6],
        ),
    ],
)
def test_philox_known_answers(counter: list[int], key: list[int], output: list[int]) -> None:
    """The known-answer vectors of Random123; they hold the reference of the other tests here."""
    assert philox(counter, key) == output


@pytest.mark.parametrize(("seed", "index"), [(0, 0), (12345, 678), (-1, 2**63), (2**64 + 5, -3)])
def test_counters_and_keys(seed: int, index: int) -> None:
    key = [seed & WORD, index & WORD]
    stream = Stream(seed)
    stream.start(index)
    for kind in (SAMPLE, OBSERVE):
        for ordinal in (0, 1, 15, 16, 63, 1000):
            stream.seek(ordinal, kind)
            expected = [u for refill in range(4) for u in uniforms([ordinal + 1, refill, 0, kind], key)]
            assert take(stream, 16) == expected
            stream.seek(ordinal, kind)
            rows = stream.elements(3)
            assert rows.tolist() == [uniforms([e + 1, 0, ordinal, kind + 2], key) for e in range(3)]
            for element, numbers in enumerate(stream.each(3)):
                expected = [u for r in range(3) for u in uniforms([element + 1, r, ordinal, kind + 2], key)]
                assert [numbers.uniform() for _ in range(12)] == expected


def test_extreme_outputs_stay_inside() -> None:
    """The map from 64 bits to (0, 1) at both ends."""
    assert 0.0 < ((0 >> 12) + 0.5) * 2.0**-52
    assert ((WORD >> 12) + 0.5) * 2.0**-52 == 1.0 - 2.0**-53
    stream = Stream(1)
    u = stream.elements(250_000)
    assert u.min() > 0.0
    assert u.max() < 1.0
    assert abs(u.mean() - 0.5) < 5.0 / np.sqrt(12.0 * u.size)


def test_order_of_use_does_not_matter() -> None:
    """Statements visited in any order, partly consumed, interleaved with arrays and other traces."""
    plain = Stream(9)
    reference = {}
    for index in (4, 5):
        plain.start(index)
        for kind in (SAMPLE, OBSERVE):
            for ordinal in range(50):
                plain.seek(ordinal, kind)
                reference[index, kind, ordinal] = take(plain, 11)
    stream = Stream(9)
    rng = np.random.default_rng(0)
    keys = list(reference)
    for place in rng.permutation(len(keys)).tolist():
        index, kind, ordinal = keys[place]
        stream.start(index)
        stream.seek(int(rng.integers(60)), int(rng.integers(2)))
        take(stream, int(rng.integers(10)))
        stream.elements(2)
        stream.seek(ordinal, kind)
        assert take(stream, 11) == reference[index, kind, ordinal]


def test_start_selects_the_first_statement() -> None:
    stream = Stream(3)
    first = take(stream, 6)
    stream.seek(40, OBSERVE)
    stream.uniform()
    stream.start(0)
    assert take(stream, 6) == first
    stream.start(1)
    assert take(stream, 6) != first
    assert Stream(4).uniform() != first[0]


def test_no_two_statements_share_a_number() -> None:
    stream = Stream(0)
    seen: list[float] = []
    for index in range(3):
        stream.start(index)
        for kind in (SAMPLE, OBSERVE):
            for ordinal in range(30):
                stream.seek(ordinal, kind)
                seen += take(stream, 9)
                seen += stream.elements(3).ravel().tolist()
    assert len(set(seen)) == len(seen)


def test_golden_uniforms() -> None:
    """The numbers that every front end must give, to the last bit."""
    golden = json.loads((Path(__file__).parent / "data" / "golden_draws.json").read_text())
    stream = Stream(golden["seed"])
    for index, ordinal, kind, numbers in golden["uniforms"]:
        stream.start(index)
        stream.seek(ordinal, kind)
        assert [u.hex() for u in take(stream, len(numbers))] == numbers
