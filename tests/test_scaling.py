"""Synchronous training on paper, against closed forms."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.synchronous import ARIES, Interconnect, Measured, efficiency, simulate

from etalumis.storage import simulate as simulate_traces
from training_runs import tau_model

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
    several = simulate(parted, 256, FREE, iterations=20)
    assert sorted(several.seconds.tolist()) == [1.0] * 10 + [3.0] * 10
    assert several.waiting == 0.0


def test_parts_of_an_iteration_even_out() -> None:
    """Two ranks, p parts of 1 or 3 seconds: E[max] = 2 p + E|difference| / 2, and one exchange and step for all."""
    measured = minibatches([1.0, 3.0], step=(0.5, 0.0))
    exchange = SLOW.all_reduce(2, 8) + SLOW.all_reduce(2, 1500)
    for parts, difference in ((1, 1.0), (2, 1.5)):  # the mean of |Σ ± 2| / 2 over what the parts differ by
        found = simulate(measured, 2, SLOW, iterations=4000, parts=parts)
        assert found.seconds.mean() == pytest.approx(2.0 * parts + difference / 2 + 0.5 + exchange, rel=0.02)
        assert set(found.traces.tolist()) == {2 * 64 * parts}


def test_all_ranks_step_on_the_union_of_what_they_touched() -> None:
    """16 rows, one in each minibatch: p ranks touch 16 (1 − (15/16)^p) of them, and more ranks than these all."""
    rows = 16
    measured = minibatches(
        np.zeros(rows), touched=np.eye(rows, dtype=np.bool_), row_bytes=np.full(rows, 100), step=(0.25, 1e-3)
    )
    for ranks in (1, 2, 12, 17):
        found = simulate(measured, ranks, FREE, iterations=3000)
        share = 1.0 - (1.0 - 1.0 / rows) ** ranks if ranks <= rows else 1.0
        union = 500 + 100 * rows * share
        assert found.seconds.mean() == pytest.approx(0.25 + 1e-3 * union, rel=0.01)
        assert found.bytes == pytest.approx(union if ranks > 1 else 0.0, rel=0.01)


def test_faster_ranks_feel_the_exchange_more() -> None:
    measured = minibatches([0.5], step=(0.1, 0.0))
    exchange = SLOW.all_reduce(64, 8) + SLOW.all_reduce(64, 1500)
    found = simulate(measured, 64, SLOW, speed=10.0, iterations=3)
    assert found.seconds == pytest.approx(0.06 + exchange)
    halved = simulate(measured, 64, SLOW, speed=10.0, compression=0.5, iterations=3)
    assert halved.seconds == pytest.approx(0.06 + SLOW.all_reduce(64, 8) + SLOW.all_reduce(64, 750))


@pytest.mark.parametrize("last", [0.01, 0.4])
def test_an_exchange_behind_the_backward_pass_costs_what_is_longer(last: float) -> None:
    """Of 1,500 bytes 500 come last; ranks begin when the slowest has the others."""
    measured = minibatches([0.5, 0.75], last=np.array([last, last]), last_bytes=500)
    flags, first, rest = (SLOW.all_reduce(1024, size) for size in (8, 1000, 500))
    found = simulate(measured, 1024, SLOW, iterations=3, overlap=True)
    hidden = max(0.75, 0.75 - last + flags + first)
    assert found.seconds == pytest.approx(hidden + flags + rest)
    assert found.exchange * found.seconds.mean() == pytest.approx(hidden - 0.75 + flags + rest)
    assert found.waiting * found.seconds.mean() == pytest.approx(0.125, abs=0.01)
    plain = simulate(measured, 1024, SLOW, iterations=3)
    assert plain.seconds == pytest.approx(0.75 + flags + SLOW.all_reduce(1024, 1500))
    long = simulate(measured, 1024, SLOW, iterations=3, overlap=True, parts=2)
    assert long.seconds.mean() > found.seconds.mean() + 0.5, "of two parts the last one's backward pass hides"


# --- the benchmark ----------------------------------------------------------------------------------------------------


def curves(**seconds: float) -> dict[str, Any]:
    """Predictions of ways whose minibatches all take so long."""
    ranks = (1, 1024, 2048)
    return {way: {n: simulate(minibatches([s, s]), n, SLOW, iterations=5) for n in ranks} for way, s in seconds.items()}


def test_results_name_the_best_way_without_compression() -> None:
    scaling = pytest.importorskip("benchmarks.scaling")
    settings = scaling.Settings(quick=True)
    found = list(scaling.paper_results(curves(plain=1.0, bucketed=0.25, accumulated_bf16=0.1), "", settings))
    names = [result.name for result in found]
    assert names == [
        "predicted_efficiency_1024",
        *(f"predicted_{w}_1024" for w in ("plain", "bucketed", "accumulated_bf16")),
    ]
    assert found[0].ratio == found[2].ratio
    assert (found[0].target, found[1].target) == (0.85, None)
    assert "10 buckets" in found[0].note
    assert found[0].ratio == pytest.approx(found[0].ours / found[0].theirs, rel=1e-3)
    large = list(scaling.paper_results(curves(plain=1.0), "small_", settings))
    assert [result.name for result in large] == ["predicted_small_plain_1024"]


def test_real_ranks_are_compared_by_medians(tmp_path: Path) -> None:
    scaling = pytest.importorskip("benchmarks.scaling")
    two, four = scaling.real_results({1: [90.0, 100.0, 300.0], 2: [170.0, 180.0, 10.0], 4: [200.0]})
    assert (two.name, two.ratio, two.ours, two.theirs, two.repeats) == ("efficiency_2", 0.85, 85.0, 100.0, 3)
    assert "peak 180" in two.note
    assert (four.name, four.ratio) == ("efficiency_4", 0.5)
    figure = importlib.import_module("benchmarks.scaling_figure")
    figure.draw(tmp_path / "a.png", {"one": curves(plain=1.0, mixed=2.0)}, {1: 1.0, 2: 0.85})
    figure.draw(tmp_path / "b.png", {"one": curves(plain=1.0), "other": curves(plain=3.0)}, {1: 1.0})
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_minibatch_is_timed_and_what_it_touches_is_known(tmp_path: Path) -> None:
    times = pytest.importorskip("benchmarks.minibatch_times")
    for name, count in (("random", 150), ("sorted", 150)):
        simulate_traces(tau_model, tmp_path / name, count, model="tau", workers=0, chunk_size=50)
    folders = {"random": tmp_path / "random", "sorted": tmp_path / "sorted"}
    worker = times.Worker(times.SMALL, folders["random"])
    draws = times.average_draws(folders)
    found = worker.measure(times.sampled(times.WAYS["both"], folders, draws), repeats=2)
    assert found.traces.sum() == 150
    assert len(np.unique(found.bucket)) > 3
    assert bool((found.seconds > 0.0).all())
    sizes = found.touched @ found.row_bytes
    assert 0 < sizes.min() < sizes.max() < found.row_bytes.sum()
    assert min(found.step) >= 0.0
    assert 0.0 < efficiency(simulate(found, 64, iterations=20), simulate(found, 1, iterations=50)) < 1.2
    few = worker.measure(times.sampled(times.WAYS["plain"], folders, draws), repeats=1, most=2)
    assert len(few.seconds) == 2
    measured = times.CNNCost.measured(0)
    assert measured.forward > 0.0
    assert measured.backward >= 0.0
    assert measured.bytes > 4_000_000
    cnn = times.with_cnn(few, times.CNNCost(0.25, 0.5, 5_000_000))
    assert cnn.seconds.tolist() == pytest.approx((few.seconds + 0.75 * few.traces).tolist())
    assert cnn.last.tolist() == pytest.approx((0.5 * few.traces).tolist())
    assert cnn.dense_bytes - few.dense_bytes == cnn.last_bytes == 5_000_000


@pytest.mark.parametrize(
    ("x", "y", "line"), [([1, 2, 3], [3, 5, 7], (1, 2)), ([1, 2], [4, 2], (0, 2)), ([2, 2], [3, 5], (4, 0))]
)
def test_lines_never_fall(x: list[float], y: list[float], line: tuple[float, float]) -> None:
    times = pytest.importorskip("benchmarks.minibatch_times")
    assert times.straight(np.array(x), np.array(y)) == pytest.approx(line)
