"""Minibatches: every trace once per epoch, in an order that depends on (seed, epoch) alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etalumis.datamodules.minibatches import Minibatch, Rows, Split, TrainingOrder, in_order


def traces(minibatches: list[Minibatch]) -> Counter[tuple[int, int]]:
    return Counter((piece.chunk, row) for m in minibatches for piece in m for row in piece.rows.tolist())


def sizes(minibatches: list[Minibatch]) -> list[int]:
    return [sum(len(piece.rows) for piece in m) for m in minibatches]


def everything(chunks: list[int]) -> list[Rows]:
    return [np.arange(n) for n in chunks]


CHUNKS = st.lists(st.integers(1, 50), min_size=1, max_size=25)


# --- which traces ---------------------------------------------------------------------------------


@given(CHUNKS, st.integers(1, 40), st.integers(0, 5))
def test_every_trace_once_per_epoch(chunks: list[int], batch_size: int, epoch: int) -> None:
    order = TrainingOrder(everything(chunks), batch_size, seed=1)
    minibatches = order.epoch(epoch)
    assert len(minibatches) == len(order)
    assert traces(minibatches) == {(c, r): 1 for c, n in enumerate(chunks) for r in range(n)}
    assert max(sizes(minibatches)) <= batch_size
    assert order.traces == sum(chunks)


@given(CHUNKS, st.integers(1, 40))
def test_validation_goes_through_all_in_order(chunks: list[int], batch_size: int) -> None:
    minibatches = in_order(everything(chunks), batch_size)
    places = [(p.chunk, row) for m in minibatches for p in m for row in p.rows.tolist()]
    assert places == [(c, r) for c, n in enumerate(chunks) for r in range(n)]
    assert all(size == batch_size for size in sizes(minibatches)[:-1])
    assert 0 < sizes(minibatches)[-1] <= batch_size


def test_slices_of_a_chunk_are_of_equal_size() -> None:
    order = TrainingOrder(everything([1000] * 3), 256, seed=0)
    assert sizes(order.epoch(0)) == [250] * 12


@given(CHUNKS, st.floats(0.0, 0.99), st.integers(0, 3))
def test_the_split_takes_every_trace_to_one_side(chunks: list[int], fraction: float, seed: int) -> None:
    split = Split(seed, fraction)
    for number, count in enumerate(chunks):
        train, valid = (split.rows(number, count, validate) for validate in (False, True))
        assert sorted([*train, *valid]) == list(range(count))
        assert abs(len(valid) - fraction * count) < 1.0
    if fraction == 0.0:
        assert all(len(split.rows(number, n, True)) == 0 for number, n in enumerate(chunks))


def test_the_split_is_fair_to_small_chunks() -> None:
    split = Split(0, 0.1)
    held_out = sum(len(split.rows(number, 1, True)) for number in range(4000))
    assert abs(held_out - 400) < 5 * (4000 * 0.1 * 0.9) ** 0.5


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_impossible_split(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        Split(0, fraction)


# --- in which order -------------------------------------------------------------------------------


def flat(minibatches: list[Minibatch]) -> list[tuple[int, int]]:
    return [(p.chunk, row) for m in minibatches for p in m for row in p.rows.tolist()]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    rows = everything([30] * 20)
    order = TrainingOrder(rows, 8, seed=4)
    later = flat(order.epoch(3))
    assert flat(TrainingOrder(rows, 8, seed=4).epoch(3)) == later
    assert flat(order.epoch(4)) != later
    assert flat(TrainingOrder(rows, 8, seed=5).epoch(3)) != later


def test_chunks_and_company_change_from_epoch_to_epoch() -> None:
    order = TrainingOrder(everything([64] * 16), 16, seed=0)
    first, second = order.epoch(0), order.epoch(1)
    company = [{frozenset(p.rows.tolist()) for (p,) in epoch if p.chunk == 0} for epoch in (first, second)]
    assert company[0].isdisjoint(company[1])
    assert [m[0].chunk for m in first] != [m[0].chunk for m in second]


def test_a_reader_needs_few_chunks_at_hand() -> None:
    """Between its first and its last minibatch of an epoch, a chunk meets at most 7 others."""
    minibatches = TrainingOrder(everything([64] * 40), 16, seed=0).epoch(0)
    chunks = [m[0].chunk for m in minibatches]
    for chunk in range(40):
        places = [k for k, c in enumerate(chunks) if c == chunk]
        assert len(set(chunks[places[0] : places[-1] + 1])) <= 8
