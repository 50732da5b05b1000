"""Synchronous training on paper, against closed forms."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.synchronous import ARIES, Interconnect, Measured, efficiency, simulate

SLOW = Interconnect(latency=1e-3, per_byte=1e-6, adding=5e-7)
FREE = Interconnect(0.0, 0.0, 0.0)


def minibatches(seconds: Any, **other: Any) -> Measured:
    """64 traces each, that all touch one row of 1,000 bytes; no optimiser."""
    count = len(seconds)
    settings: dict[str, Any] = {
        "traces": np.full(count, 64),
        "bucket": np.zeros(count, dtype=np.int64),
        "touched": np.ones((count, 1), dtype=np.bool_),
        "row_bytes": np.array([1000]),
        "dense_bytes": 500,
        "step": (0.0, 0.0),
    }
    return Measured(np.asarray(seconds, dtype=np.float64), **settings | other)


def test_an_all_reduce_takes_the_better_algorithm() -> None:
    assert SLOW.all_reduce(1, 1e6) == 0.0
    # Two ranks: one message there and back against two halves there and back.
    assert SLOW.all_reduce(2, 10) == pytest.approx(1e-3 + 10 * 1.5e-6)
    large = 1e9
    assert SLOW.all_reduce(1024, large) == pytest.approx(20e-3 + 1023 / 1024 * large * 2.5e-6)
    # Where latencies vanish each byte is sent twice and added once, however many ranks.
    many = [ARIES.all_reduce(ranks, 1e9) for ranks in (64, 1024, 2048)]
    assert many == pytest.approx([1e9 * (2 * ARIES.per_byte + ARIES.adding)] * 3, rel=0.02)


@pytest.mark.parametrize("ranks", [1, 2, 3, 1024])
def test_equal_minibatches_lose_the_exchange_only(ranks: int) -> None:
    measured = minibatches([0.5] * 7)
    one, several = simulate(measured, 1, SLOW, iterations=20), simulate(measured, ranks, SLOW, iterations=20)
    exchange = SLOW.all_reduce(ranks, 8) + SLOW.all_reduce(ranks, 1500)
    assert several.seconds == pytest.approx(0.5 + exchange)
    assert efficiency(several, one) == pytest.approx(0.5 / (0.5 + exchange))
    assert several.waiting == pytest.approx(0.0)
    assert several.exchange == pytest.approx(exchange / (0.5 + exchange))
    assert several.rate == pytest.approx(several.peak)


@pytest.mark.parametrize(("ranks", "share"), [(1, 0.25), (2, 0.25), (8, 0.25), (64, 0.125)])
def test_the_slowest_rank_ends_an_iteration(ranks: int, share: float) -> None:
    """Of two lengths, E[max] = slow − (slow − fast) · P(all are fast)."""
    fast, slow, iterations = 1.0, 3.0, 4000
    measured = minibatches([slow if k < 8 * share else fast for k in range(8)])
    several = simulate(measured, ranks, FREE, iterations=iterations)
    all_fast = (1.0 - share) ** ranks
    expected = slow - (slow - fast) * all_fast
    error = (slow - fast) * (all_fast * (1.0 - all_fast) / iterations) ** 0.5
    assert abs(several.seconds.mean() - expected) < 5.0 * error + 1e-9
    mean = fast + share * (slow - fast)
    assert several.waiting == pytest.approx(1.0 - mean / expected, abs=0.02)


def test_buckets_work_on_equal_minibatches_at_the_same_time() -> None:
    """The time of each length by itself, not the longest always: no time is lost."""
    seconds, bucket = np.array([1.0, 1.0, 3.0, 3.0]), np.array([0, 0, 1, 1])
    mixed, parted = minibatches(seconds), minibatches(seconds, bucket=bucket)
    assert simulate(mixed, 256, FREE).seconds == pytest.approx(3.0)
    several = simulate(parted, 256, FREE, iterations=2000)
    assert set(several.seconds.tolist()) == {1.0, 3.0}
    assert several.seconds.mean() == pytest.approx(2.0, abs=0.12)
    assert several.waiting == 0.0


def test_all_ranks_step_on_the_union_of_what_they_touched() -> None:
    """16 rows, one in each minibatch: p ranks touch 16 (1 − (15/16)^p) of them."""
    rows = 16
    measured = minibatches(
        np.zeros(rows), touched=np.eye(rows, dtype=np.bool_), row_bytes=np.full(rows, 100), step=(0.25, 1e-3)
    )
    for ranks in (1, 2, 40):
        found = simulate(measured, ranks, FREE, iterations=3000)
        union = 500 + 100 * rows * (1.0 - (1.0 - 1.0 / rows) ** ranks)
        assert found.seconds.mean() == pytest.approx(0.25 + 1e-3 * union, rel=0.01)
        assert found.bytes == pytest.approx(union if ranks > 1 else 0.0, rel=0.01)


def test_faster_ranks_feel_the_exchange_more() -> None:
    measured = minibatches([0.5], step=(0.1, 0.0))
    exchange = SLOW.all_reduce(64, 8) + SLOW.all_reduce(64, 1500)
    found = simulate(measured, 64, SLOW, speed=10.0, iterations=3)
    assert found.seconds == pytest.approx(0.06 + exchange)
    halved = simulate(measured, 64, SLOW, speed=10.0, compression=0.5, iterations=3)
    assert halved.seconds == pytest.approx(0.06 + SLOW.all_reduce(64, 8) + SLOW.all_reduce(64, 750))
