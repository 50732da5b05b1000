"""Traces in columns: nothing is lost, reordered or invented."""

from __future__ import annotations

import json

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Bernoulli, Categorical, Mixture, Normal, Poisson, Uniform
from etalumis.execution import TraceBatch, run


def model():
    """Branches, arrays, several families, an unnamed loop, tags of every kind."""
    kind = et.sample(Categorical([0.2, 0.5, 0.3]), name="kind")
    if kind == 1:
        et.sample(Normal(np.zeros(3), np.array([1.0, 2.0, 3.0])), name="vector")
    for _ in range(et.sample(Poisson(1.5), name="count", control=False)):
        et.sample(Uniform(-1.0, 1.0))
    x = et.sample(Mixture([0.5, 0.5], [Normal(-1.0, 1.0), Normal(1.0, 0.5)]), name="x")
    et.observe(Normal(np.full((2, 2), x), 0.2), name="image")
    et.observe(Categorical([0.1, 0.9]), name="label")
    if kind != 2:
        et.observe(Bernoulli(0.5), name="flag")
    et.tag(x * 2.0, name="double")
    et.tag("kind " + str(kind), name="text")
    et.tag(np.array([x, -x]), name="pair")
    return float(kind)


@pytest.fixture(scope="module")
def executed():
    built = et.Model(model)
    traces = list(run(built, observe={"image": np.ones((2, 2))}, indices=range(40), seed=2))
    return built, traces, TraceBatch.from_traces(traces, built.addresses)


def same(a: TraceBatch, b: TraceBatch) -> None:
    """Equal in every column, up to the numbering of names and distributions."""
    assert a.index.tolist() == b.index.tolist()
    assert a.lengths.tolist() == b.lengths.tolist()
    assert [str(a.addresses[i]) for i in a.address] == [str(b.addresses[i]) for i in b.address]
    assert [a.names[i] for i in a.name] == [b.names[i] for i in b.name]
    assert [a.distributions.distribution(i) for i in a.distribution] == [
        b.distributions.distribution(i) for i in b.distribution
    ]
    for key in ("value", "value_offsets", "controlled", "conditioned", "log_prob", "log_q", "log_weight"):
        np.testing.assert_array_equal(getattr(a, key), getattr(b, key))
    assert a.trace_types().tolist() == b.trace_types().tolist()
    for left, right in zip(a.observes, b.observes, strict=True):
        assert (left.name, left.family, left.observed) == (right.name, right.family, right.observed)
        np.testing.assert_array_equal(left.rows, right.rows)
        for p, q in zip(left.parameters, right.parameters, strict=True):
            np.testing.assert_array_equal(
                np.broadcast_to(p, (len(left), *p.shape[1:])), np.broadcast_to(q, (len(left), *q.shape[1:]))
            )
        np.testing.assert_array_equal(left.values, right.values)
    for left, right in zip((*a.tags, a.result), (*b.tags, b.result), strict=True):
        assert left.name == right.name
        np.testing.assert_array_equal(left.rows, right.rows)
        np.testing.assert_array_equal(np.asarray(left.values), np.asarray(right.values))


def test_columns_hold_what_the_traces_said(executed):
    _, traces, batch = executed
    assert batch.num_draws == sum(map(len, traces))
    np.testing.assert_allclose(batch.log_weight, [t.log_weight for t in traces])
    rows, values = batch.draws("kind")
    assert rows.tolist() == list(range(40))
    assert values.dtype == np.int64
    assert values.tolist() == [t["kind"] for t in traces]
    rows, values = batch.draws("vector")
    assert values.shape == (sum(t["kind"] == 1 for t in traces), 3)
    assert [t["kind"] for t in traces if t["kind"] == 1] == [1] * len(rows)
    assert batch.result.values.tolist() == [t.result for t in traces]
    with pytest.raises(KeyError, match="kind"):
        batch.draws("nobody")


def test_observe_columns_score_like_the_loop(executed):
    _, _, batch = executed
    (image,) = [o for o in batch.observes if o.name == "image"]
    assert image.shape == (2, 2)
    np.testing.assert_allclose(image.log_likelihood(np.ones((2, 2))), batch.log_likelihood, rtol=1e-12)
    assert len(image.parameters[1]) == 1, "a parameter that all traces share is stored once"
    (label,) = [o for o in batch.observes if o.name == "label"]
    assert label.shape == ()
    np.testing.assert_allclose(label.log_likelihood(1.0), np.log(0.9))
    (flag,) = [o for o in batch.observes if o.name == "flag"]
    assert len(flag) == sum(batch.draws("kind")[1] != 2)


def test_through_plain_arrays_and_json(executed):
    built, _, batch = executed
    arrays, meta = batch.to_arrays()
    assert all(isinstance(a, np.ndarray) and a.dtype.kind in "biuf" for a in arrays.values())
    book = et.AddressBook.from_json(json.loads(json.dumps(built.addresses.to_json())))
    same(batch, TraceBatch.from_arrays(arrays, json.loads(json.dumps(meta)), book))


def test_concatenation_equals_one_batch(executed):
    built, traces, batch = executed
    parts = [TraceBatch.from_traces(part, built.addresses) for part in (traces[:7], traces[7:8], traces[8:])]
    joined = TraceBatch.concatenate(parts)
    same(batch, joined.select(np.arange(40)))
    assert len(joined.distributions) == len(batch.distributions)


def test_selection_repeats_and_reorders(executed):
    built, traces, batch = executed
    rows = [5, 5, 39, 0, 12]
    same(
        batch.select(rows),
        TraceBatch.from_traces([traces[r] for r in rows], built.addresses).select(range(5)),
    )
    assert len(batch.select([])) == 0
    assert batch.select(batch.draws("kind")[1] == 1).draws("kind")[1].tolist() == [1 for t in traces if t["kind"] == 1]


def test_types_follow_controlled_addresses_in_every_process(executed):
    built, traces, batch = executed
    sequences = [
        tuple(str(built.addresses[a]) for a, c in zip(t.addresses, t.controlled, strict=True) if c) for t in traces
    ]
    types = batch.trace_types().tolist()
    assert len(set(types)) == len(set(sequences))
    assert len(set(zip(types, sequences, strict=True))) == len(set(types))
    book = et.AddressBook()
    book.intern("elsewhere", "Normal", 1)
    moved = batch.remap(book.merge(built.addresses), book)
    assert moved.trace_types().tolist() == types


def test_repeated_names_are_told_apart_by_instance():
    built = et.Model(lambda: [et.sample(Normal(0.0, 1.0), name="x") for _ in range(3)])
    batch = TraceBatch.from_traces(list(run(built, indices=range(5))), built.addresses)
    for instance in range(3):
        rows, values = batch.draws("x", instance)
        assert rows.tolist() == list(range(5))
        np.testing.assert_array_equal(values, batch.value.reshape(5, 3)[:, instance])


def test_damage_is_noticed(executed):
    built, _, batch = executed
    arrays, meta = batch.to_arrays()
    with pytest.raises(ValueError, match="lack 'log_q'"):
        TraceBatch.from_arrays({k: v for k, v in arrays.items() if k != "log_q"}, meta, built.addresses)
    with pytest.raises(ValueError, match="address id is unknown"):
        TraceBatch.from_arrays(arrays | {"address": arrays["address"] + 10_000}, meta, built.addresses)
    with pytest.raises(ValueError, match="add up"):
        TraceBatch.from_arrays(arrays | {"lengths": arrays["lengths"] + 1}, meta, built.addresses)


def test_numpy_scalars_are_plain_ones():
    built = et.Model(lambda: et.tag(np.bool_(True), name="flag"))
    batch = TraceBatch.from_traces(list(run(built, indices=range(2))), built.addresses)
    assert batch.to_arrays()[1]["tags"][0]["values"] == [True, True]


def test_objects_stay_in_memory_only():
    built = et.Model(lambda: et.tag(object(), name="thing"))
    batch = TraceBatch.from_traces(list(run(built, indices=range(2))), built.addresses)
    with pytest.raises(TypeError, match=r"'thing' holds .*object"):
        batch.to_arrays()
