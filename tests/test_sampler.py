"""The order of training minibatches: by (seed, epoch), dealt to ranks, gone on with anywhere."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etalumis.datamodules.deal import Dealt, EpochPlan, EpochPosition, iterations
from etalumis.datamodules.minibatches import Minibatch, Stock, TrainingOrder, pieces, single_traces, size
from etalumis.datamodules.sampler import RankSampler

Trace = tuple[int, int]


def traces(minibatches: Sequence[Minibatch]) -> Counter[Trace]:
    return Counter((piece.chunk, row) for m in minibatches for piece in m for row in piece.rows.tolist())


def flat(minibatches: Sequence[Minibatch]) -> list[Trace]:
    return [(piece.chunk, row) for m in minibatches for piece in m for row in piece.rows.tolist()]


def plain(chunks: Sequence[int]) -> list[Stock]:
    """Chunks of so many traces of all types."""
    return [Stock(np.arange(n)) for n in chunks]


def all_of(order: TrainingOrder, epoch: int) -> list[Minibatch]:
    return [m for bucket in order.epoch(epoch) for m in bucket]


@st.composite
def stocks(draw: st.DrawFn) -> list[Stock]:
    """Any layout: chunks of one type and of several, with a few lengths, some of their traces not for training."""
    out = []
    for _ in range(draw(st.integers(1, 20))):
        count = draw(st.integers(0, 40))
        alike = draw(st.booleans())
        lengths = np.full(count, draw(st.integers(1, 9)))
        if not alike:
            lengths = np.array(draw(st.lists(st.integers(1, 9), min_size=count, max_size=count)), dtype=np.int64)
        out.append(Stock(np.arange(count) * 2, lengths, alike))
    return out


@st.composite
def orders(draw: st.DrawFn, batch_sizes: st.SearchStrategy[int] = st.integers(1, 30)) -> TrainingOrder:  # noqa: B008
    return TrainingOrder(
        draw(stocks().filter(lambda found: any(len(s.rows) for s in found))),
        draw(batch_sizes),
        seed=draw(st.integers(0, 5)),
        buckets=draw(st.integers(1, 5)),
        max_draws=draw(st.none() | st.integers(1, 100)),
        by_type=draw(st.booleans()),
        mixing=draw(st.integers(1, 10)),
    )


def everything(order: TrainingOrder) -> Counter[Trace]:
    return traces(all_of(order, 0))


# --- minibatches ----------------------------------------------------------------------------------


@given(stocks(), st.data())
def test_every_trace_comes_once_per_epoch_in_as_many_minibatches(found: list[Stock], data: st.DataObject) -> None:
    order = TrainingOrder(
        found,
        data.draw(st.integers(1, 30)),
        seed=1,
        buckets=data.draw(st.integers(1, 5)),
        max_draws=data.draw(st.none() | st.integers(1, 100)),
        by_type=data.draw(st.booleans()),
    )
    expected = {(c, r): 1 for c, stock in enumerate(found) for r in stock.rows.tolist()}
    assert order.traces == sum(order.bucket_traces) == len(expected)
    for epoch in range(3):
        buckets = order.epoch(epoch)
        assert traces([m for bucket in buckets for m in bucket]) == expected
        assert tuple(map(len, buckets)) == order.sizes
        assert tuple(sum(map(size, bucket)) for bucket in buckets) == order.bucket_traces
        assert all(size(m) > 0 for bucket in buckets for m in bucket)


@given(stocks(), st.integers(1, 30), st.booleans(), st.integers(1, 4))
def test_minibatches_are_not_larger_than_asked(
    found: list[Stock], batch_size: int, by_type: bool, buckets: int
) -> None:
    order = TrainingOrder(found, batch_size, 0, by_type=by_type, buckets=buckets)
    assert all(size(m) <= batch_size for m in all_of(order, 0))


@given(stocks(), st.integers(1, 30), st.integers(1, 100), st.integers(1, 4))
def test_minibatches_keep_to_a_budget_of_draws(
    found: list[Stock], batch_size: int, max_draws: int, buckets: int
) -> None:
    order = TrainingOrder(found, batch_size, 0, max_draws=max_draws, buckets=buckets)
    for minibatch in all_of(order, 3):
        lengths = [int(found[p.chunk].lengths[row // 2]) for p in minibatch for row in p.rows.tolist()]  # type: ignore[index]
        # Exceeded by one trace at most, in draws or in traces.
        assert sum(max(n / max_draws, 1 / batch_size) for n in lengths) <= 1 + max(max(lengths) / max_draws, 1) + 1e-9
        assert len(lengths) <= batch_size + 1
        assert sum(lengths) <= max_draws + max(lengths)


def test_a_budget_makes_minibatches_of_about_as_many_draws() -> None:
    rng = np.random.default_rng(0)
    found = [Stock(np.arange(500), rng.integers(5, 50, 500)) for _ in range(8)]
    draws = {}
    for budget in (None, 1000):
        order = TrainingOrder(found, 1000 if budget else 36, 0, max_draws=budget)
        minibatches = all_of(order, 0)
        counts = [sum(int(found[p.chunk].lengths[p.rows].sum()) for p in m) for m in minibatches]  # type: ignore[index]
        draws[budget] = np.std(counts) / np.mean(counts)
    assert draws[1000] < 0.3 * draws[None]


def test_slices_of_a_chunk_are_of_equal_size() -> None:
    assert [size(m) for m in all_of(TrainingOrder(plain([1000] * 3), 256, seed=0), 0)] == [250] * 12


def test_small_chunks_are_put_together() -> None:
    order = TrainingOrder(plain([10] * 100), 250, seed=0)
    assert [size(m) for m in all_of(order, 0)] == [250] * 4


def test_order_depends_on_seed_and_epoch_alone() -> None:
    order = TrainingOrder(plain([30] * 20), 8, seed=4)
    later = flat(all_of(order, 3))
    assert flat(all_of(TrainingOrder(plain([30] * 20), 8, seed=4), 3)) == later
    assert flat(all_of(order, 4)) != later
    assert flat(all_of(TrainingOrder(plain([30] * 20), 8, seed=5), 3)) != later


def test_chunks_and_company_change_from_epoch_to_epoch() -> None:
    order = TrainingOrder(plain([64] * 16), 16, seed=0)
    first, second = all_of(order, 0), all_of(order, 1)
    company = [{frozenset(p.rows.tolist()) for (p,) in epoch if p.chunk == 0} for epoch in (first, second)]
    assert company[0].isdisjoint(company[1])
    assert [m[0].chunk for m in first] != [m[0].chunk for m in second]


def test_a_reader_needs_few_chunks_at_hand() -> None:
    """Between its first and its last minibatch of an epoch, a chunk meets at most 7 others."""
    chunks = [m[0].chunk for m in all_of(TrainingOrder(plain([64] * 40), 16, seed=0), 0)]
    for chunk in range(40):
        places = [k for k, c in enumerate(chunks) if c == chunk]
        assert len(set(chunks[places[0] : places[-1] + 1])) <= 8


def test_sorted_chunks_give_minibatches_of_one_type_and_rare_types_new_company() -> None:
    """Eight chunks of one type each, and three of rare types."""
    found = [Stock(np.arange(100), alike=True) for _ in range(8)] + plain([100, 100, 70])
    order = TrainingOrder(found, 50, seed=0, by_type=True)
    company: list[dict[Trace, set[Trace]]] = []
    for epoch in (0, 1):
        company.append({})
        minibatches = all_of(order, epoch)
        for minibatch in minibatches:
            chunks = {p.chunk for p in minibatch}
            assert len(chunks) == 1 or min(chunks) >= 8, "frequent types stay among themselves"
            if min(chunks) >= 8:
                assert len(chunks) == 3, "traces of all chunks of rare types meet"
                company[-1] |= {trace: set(flat([minibatch])) for trace in flat([minibatch])}
        assert len(minibatches) == 16 + 6
    again = [len(company[0][t] & company[1][t]) / len(company[0][t]) for t in company[0]]
    assert len(again) == 270
    assert np.mean(again) < 0.35, "as many as chance brings together again: 50 of 270"


def test_buckets_divide_by_length_and_keep_equal_lengths_together() -> None:
    lengths = np.repeat([3, 4, 17, 25], [30, 20, 40, 10])
    found = [Stock(np.arange(100), lengths) for _ in range(4)]
    order = TrainingOrder(found, 10, 0, buckets=2)
    seen = [{int(lengths[row]) for _, row in flat(bucket)} for bucket in order.epoch(0)]
    assert seen == [{3, 4}, {17, 25}]
    assert TrainingOrder([Stock(np.arange(100), np.full(100, 7))], 10, 0, buckets=5).sizes == (10,)


@pytest.mark.parametrize("share", [0.0004, 0.0006, 0.003])
def test_a_share_is_of_all_traces_however_small_chunks_are(share: float) -> None:
    order = TrainingOrder([Stock(np.arange(1000), share=share)] * 100, 16, 0)
    assert order.traces == round(share * 100_000)
    seen = Counter[int]()
    for epoch in range(40):
        found = traces([m for bucket in order.epoch(epoch) for m in bucket])
        assert found.total() == len(found) == order.traces
        assert max(Counter(chunk for chunk, _ in found).values()) <= share * 1000 + 1.0
        seen.update(chunk for chunk, _ in found)
    assert all(abs(seen[chunk] - 40 * share * 1000) < 5 * (40 * share * 1000) ** 0.5 + 1 for chunk in range(100))
    assert len(seen) == 100


def test_a_share_reaches_few_long_traces_and_keeps_the_budget() -> None:
    """Four long traces to a chunk, in a bucket of their own, of which an epoch takes a tenth."""
    lengths = np.concatenate([np.random.default_rng(0).integers(1, 20, 96), [150, 160, 170, 180]])
    stocks = [Stock(np.arange(100), lengths, share=0.1)] * 100
    for buckets in (1, 20):
        order = TrainingOrder(stocks, 64, 0, buckets=buckets, max_draws=200)
        seen = Counter[Trace]()
        for epoch in range(60):
            minibatches = [m for bucket in order.epoch(epoch) for m in bucket]
            assert len(minibatches) == len(order)
            for minibatch in minibatches:
                draws = [int(lengths[row]) for _, row in flat([minibatch])]
                assert sum(draws) <= 200 + max(draws)
                assert len(draws) <= 64 + 1
            seen += traces(minibatches)
        long = [seen[chunk, row] for chunk in range(100) for row in range(96, 100)]
        assert abs(sum(long) - 60 * 40) <= 60
        assert np.mean(np.array(long) > 0) > 0.98
        assert abs(sum(seen.values()) - 60 * 1000) <= 60 * buckets


def test_an_epoch_takes_a_share_that_differs_from_epoch_to_epoch() -> None:
    found = [Stock(np.arange(100), share=0.25), Stock(np.arange(40))]
    order = TrainingOrder(found, 10, 0)
    assert order.traces == 65
    first, second = (traces(all_of(order, epoch)) for epoch in (0, 1))
    assert max(first.values()) == 1
    assert [sum(chunk == c for chunk, _ in first) for c in (0, 1)] == [25, 40]
    assert {t for t in first if t[0] == 0} != {t for t in second if t[0] == 0}


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"buckets": 0}, {"max_draws": 0}])
def test_impossible_settings(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least 1; got 0"):
        TrainingOrder(plain([3]), **{"batch_size": 1, "seed": 0, **wrong})  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 99)), min_size=1, unique=True))
def test_single_traces_and_back(places: list[Trace]) -> None:
    chunk, rows = (np.array(column, dtype=np.int64) for column in zip(*places, strict=True))
    minibatch = pieces(chunk, rows)
    assert sorted(flat([minibatch])) == sorted(places)
    assert len({p.chunk for p in minibatch}) == len(minibatch)
    assert sorted(zip(*(a.tolist() for a in single_traces([minibatch])), strict=True)) == sorted(places)


# --- ranks ----------------------------------------------------------------------------------------


@given(orders(), st.integers(1, 9), st.integers(0, 3))
def test_ranks_have_equal_steps_and_all_traces_once_but_those_reported(
    order: TrainingOrder, world: int, epoch: int
) -> None:
    plan = EpochPlan(order, world, 7, EpochPosition(epoch))
    assert len(plan) == iterations(order, world)
    assert all(len(ranks) == world for ranks in plan.iterations)
    assert all(size(m) > 0 for ranks in plan.iterations for m in ranks)
    seen = traces([m for ranks in plan.iterations for m in ranks])
    assert max(seen.values(), default=1) == 1, "ranks are disjoint"
    assert seen <= everything(order)
    assert sum(seen.values()) + plan.left_out == order.traces
    assert plan.left_out <= (world - 1) * len(order.sizes)


@given(orders(), st.integers(1, 9))
def test_ranks_of_an_iteration_draw_from_one_bucket(order: TrainingOrder, world: int) -> None:
    bucket_of = {trace: k for k, bucket in enumerate(order.epoch(2)) for trace in flat(bucket)}
    for ranks in EpochPlan(order, world, 0, EpochPosition(2)).iterations:
        assert len({bucket_of[trace] for trace in flat(ranks)}) == 1


def test_the_bucket_is_chosen_anew_for_each_iteration() -> None:
    lengths = np.tile([2, 9], 1000)
    order = TrainingOrder([Stock(np.arange(2000), lengths)], 10, 0, buckets=2)
    chosen = [int(lengths[flat(ranks)[0][1]]) for ranks in EpochPlan(order, 2, 0, EpochPosition()).iterations]
    changes = sum(a != b for a, b in pairwise(chosen))
    assert len(chosen) == 100
    assert 30 < changes < 70, "as a coin would"


@given(orders(), st.integers(1, 5), st.integers(0, 3))
def test_samplers_of_all_ranks_give_the_plan(order: TrainingOrder, world: int, epoch: int) -> None:
    samplers = [RankSampler(order, 3, rank, world) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    read = [list(sampler) for sampler in samplers]
    assert {len(places) for places in read} == {len(samplers[0])}
    assert {e for places in read for e, _ in places} <= {epoch}
    plan = EpochPlan(order, world, 3, EpochPosition(epoch))
    for step, ranks in enumerate(plan.iterations):
        assert [flat([read[rank][step][1]]) for rank in range(world)] == [flat([m]) for m in ranks]
    assert all(sampler.left_out == plan.left_out for sampler in samplers)


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_ranks_that_can_not_be(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match="ranks are counted from 0"):
        RankSampler(TrainingOrder(plain([3]), 1, 0), 0, rank, world)


# --- going on within an epoch ---------------------------------------------------------------------


@given(orders(), st.integers(1, 6), st.data())
def test_the_same_ranks_go_on_as_if_nothing_had_been(order: TrainingOrder, world: int, data: st.DataObject) -> None:
    whole = EpochPlan(order, world, 1, EpochPosition(2)).iterations
    done = data.draw(st.integers(0, len(whole)))
    more = data.draw(st.integers(0, len(whole) - done))
    rest = EpochPlan(order, world, 1, EpochPosition(2).after(world, done).after(world, more)).iterations
    assert [flat(r) for r in rest] == [flat(r) for r in whole[done + more :]]


@given(orders(), st.lists(st.integers(1, 6), min_size=2, max_size=4), st.data())
def test_other_ranks_share_what_is_left(order: TrainingOrder, worlds: list[int], data: st.DataObject) -> None:
    position, seen = EpochPosition(1), Counter[Trace]()
    for number, world in enumerate(worlds):
        plan = EpochPlan(order, world, 1, position)
        last = number == len(worlds) - 1
        count = len(plan) if last else data.draw(st.integers(0, len(plan)))
        seen += traces([m for ranks in plan.iterations[:count] for m in ranks])
        position = position.after(world, count)
        # What is left counts as the end of an epoch with as many ranks: it can't be longer.
        assert len(plan) <= iterations(order, world)
    assert max(seen.values(), default=1) == 1
    assert sum(seen.values()) + plan.left_out == order.traces


def test_two_ranks_then_one_in_the_global_order() -> None:
    order = TrainingOrder(plain([64] * 4), 16, seed=0)
    (minibatches,) = order.epoch(0)
    two = EpochPlan(order, 2, 0, EpochPosition())
    assert [[flat([m]) for m in ranks] for ranks in two.iterations[:3]] == [
        [flat([m]) for m in minibatches[k : k + 2]] for k in (0, 2, 4)
    ]
    one = EpochPlan(order, 1, 0, EpochPosition().after(2, 3))
    assert [flat(ranks) for ranks in one.iterations] == [flat([m]) for m in minibatches[6:]]
    sampler = RankSampler(order, 0, 0, 1, EpochPosition().after(2, 3))
    assert len(list(sampler)) == len(sampler) - 6 == 10
    sampler.set_epoch(1)
    assert len(list(sampler)) == 16


def test_positions_are_plain_data_and_add_up() -> None:
    position = EpochPosition(3).after(2, 5).after(2, 1).after(4, 2).after(4, 0)
    assert position == EpochPosition(3, (Dealt(2, 6), Dealt(4, 2)))
    assert position.minibatches == 20
    assert position.to_json() == {"epoch": 3, "dealt": [[2, 6], [4, 2]]}
    assert EpochPosition.from_json(position.to_json()) == position
