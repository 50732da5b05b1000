"""Packing: order, predecessors, groups, observations with fresh noise."""

import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kstest

import etalumis as et
from etalumis.datamodules.reading import Parcel
from etalumis.distributions import Normal, Poisson, Stream, Uniform
from etalumis.execution import AddressBook, TraceBatch, run
from etalumis.networks import InferenceNetwork, TrainingBatch, pack
from etalumis.networks.layout import UNKNOWN, Layout
from etalumis.networks.noise import Noisy, philox, realised, standard_normals
from etalumis.storage import Dataset, Origin, ShardWriter, simulate, sort
from network_models import SMALL, every_family, small, traces


@pytest.fixture(scope="module")
def batch() -> TraceBatch:
    return traces(every_family, 50)


def controlled(batch: TraceBatch, row: int) -> list[int]:
    draws = range(int(batch.offsets[row]), int(batch.offsets[row + 1]))
    return [n for n in draws if batch.controlled[n] and batch.distributions.shapes[int(batch.distribution[n])] == ()]


def test_packed_order_is_time_major_with_the_longest_traces_first(batch: TraceBatch) -> None:
    packed = pack(batch, small(batch).layout)
    lengths = [len(controlled(batch, int(row))) for row in packed.order]
    assert lengths == sorted(lengths, reverse=True)
    assert packed.batch_sizes == tuple(sum(length > t for length in lengths) for t in range(lengths[0]))
    assert packed.num_draws == sum(lengths)
    assert packed.num_traces == 50


def test_every_draw_knows_its_address_value_and_predecessor(batch: TraceBatch) -> None:
    """Walks through the packed arrays as the network does, and compares with the traces."""
    network = small(batch)
    packed = pack(batch, network.layout)
    place = {}  # packed position of (trace, step)
    for step, size in enumerate(packed.batch_sizes):
        start = sum(packed.batch_sizes[:step])
        place |= {(int(packed.order[rank]), step): start + rank for rank in range(size)}
    grouped = [(group, n) for group in packed.groups for n in range(len(group))]
    slot = {int(group.position[n]): k for k, (group, n) in enumerate(grouped)}
    rows = packed.addresses.rows.tolist()
    assert len(set(rows)) == len(rows)
    for trace in range(len(batch)):
        for step, draw in enumerate(controlled(batch, trace)):
            position = place[trace, step]
            distribution = batch.distributions.distribution(int(batch.distribution[draw]))
            family = type(distribution)
            count = family.categories(*distribution.pack()) if family.proposal == "categorical" else 0
            known = network.layout.find(batch.addresses[int(batch.address[draw])], count)
            assert rows[int(packed.address[position])] == known.row
            group, n = grouped[slot[position]]
            assert group.head == known.head
            assert group.groups.rows[int(group.member[n])] == known.head_row
            assert rows[int(group.address[group.member[n]])] == known.row
            x = float(batch.value[batch.value_offsets[draw]])
            if count:
                assert int(group.columns["category"][n]) == x
            else:
                c = family.coordinates(*(np.array([p]) for p in distribution.pack()))
                t = math.log(x) if family.log_space else x
                assert float(group.columns["z"][n]) == pytest.approx((t - c.loc[0]) / c.scale[0], abs=1e-9)
                assert float(group.columns["low"][n]) == c.low[0]
            if step:
                before = place[trace, step - 1]
                assert int(packed.previous_address[position]) == int(packed.address[before])
                assert int(packed.previous_draw[position]) == slot[before]
            else:
                assert int(packed.previous_address[position]) == len(rows)
                assert int(packed.previous_draw[position]) == len(grouped)


def test_instances_beyond_the_cap_share_a_row() -> None:
    def loop() -> None:
        for _ in range(et.sample(Poisson(6.0), name="n")):
            et.sample(Uniform(0.0, 1.0))
        et.observe(Normal(0.0, 1.0), name="y")

    data = traces(loop, 30)
    capped, exact = small(data, max_instances=2), small(data, max_instances=None)
    longest = int(max(data.draws("n")[1]))
    assert len(capped.layout) == 3
    assert len(exact.layout) == 1 + longest
    assert {int(i) for i in pack(data, capped.layout).addresses.instance} == {1, 2}


def test_a_batch_moves_and_pickles(batch: TraceBatch) -> None:
    network = small(batch)
    packed = pack(batch, pickle.loads(pickle.dumps(network.layout)))  # noqa: S301
    moved = packed.to("meta")
    assert moved.address.device.type == moved.groups[0].columns["log_prior"].device.type == "meta"
    assert moved.addresses.rows.device.type == moved.groups[0].row_ids.device.type == moved.order.device.type == "cpu"
    again: TrainingBatch = pickle.loads(pickle.dumps(packed))  # noqa: S301
    assert network.loss(again)[0].item() == network.loss(packed)[0].item()


def test_address_ids_of_another_book_mean_the_same(batch: TraceBatch) -> None:
    network = small(batch)
    book = AddressBook()
    book.intern("somewhere else", "Normal", 1)
    moved = batch.remap(book.merge(batch.addresses), book)
    for _ in range(2):  # the layout remembers the last book it translated from
        first, second = pack(batch, network.layout), pack(moved, network.layout)
        assert network.loss(first)[0].item() == pytest.approx(network.loss(second)[0].item(), rel=1e-12)


def test_an_empty_batch_and_traces_without_draws() -> None:
    def silent() -> None:
        if et.sample(Uniform(0.0, 1.0), control=False) > 0.5:
            et.sample(Normal(0.0, 1.0), address="a")
        et.observe(Normal(0.0, 1.0), name="y")

    data = traces(silent, 20)
    network = small(data)
    lengths = [len(controlled(data, n)) for n in range(20)]
    assert 0 < sum(lengths) < 20
    loss, info = network.loss(pack(data, network.layout))
    assert info["traces"] == 20.0
    only = data.select(np.flatnonzero(np.array(lengths) > 0))
    expected = network.loss(pack(only, network.layout))[0].item() * len(only) / 20
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    nothing = data.select(np.flatnonzero(np.array(lengths) == 0))
    assert network.loss(pack(nothing, network.layout))[0].item() == 0.0
    assert network.loss(pack(data.select([]), network.layout))[0].item() == 0.0


# --- observations ---------------------------------------------------------------------------------------------


def noisy() -> None:
    mu = et.sample(Normal(0.0, 1.0), name="mu")
    et.observe(Normal(np.full((4, 5), mu), 2.0), name="image")
    et.observe(Poisson(math.exp(mu)), name="count")


def kept_parameters(count: int) -> TraceBatch:
    model = et.Model(noisy)
    return TraceBatch.from_traces(list(run(model, indices=range(count), draw_observations=False)), model.addresses)


def test_fresh_noise_has_the_likelihoods_law_and_changes_with_the_epoch() -> None:
    data = kept_parameters(3000)
    layout = InferenceNetwork(SMALL, {"image": (4, 5)}, "noisy").layout
    epochs = [pack(data, layout, seed=3, epoch=epoch) for epoch in (0, 1, 0)]
    mu = data.draws("mu")[1]
    noise = []
    for packed in epochs:
        image = packed.observations["image"].numpy()
        assert image.dtype == np.float32
        noise.append((image - mu[packed.order][:, None, None]) / 2.0)
    assert np.array_equal(noise[0], noise[2])
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 5 / math.sqrt(noise[0].size)
    for one in noise[:2]:
        assert abs(one.mean()) < 5 / math.sqrt(one.size)
        assert abs(one.var() - 1.0) < 5 * math.sqrt(2.0 / one.size)
    other = pack(data, layout, seed=4).observations["image"].numpy()
    assert not np.isclose(other, epochs[0].observations["image"].numpy()).any(axis=(1, 2)).all()


@pytest.mark.parametrize("on_device", [False, True])
def test_observations_of_a_trace_have_noise_of_their_own(on_device: bool) -> None:
    def pair() -> None:
        mu = et.sample(Normal(0.0, 1.0), name="mu")
        et.observe(Normal(mu, 1.0), name="left")
        et.observe(Normal(mu, 1.0), name="right")

    count = 1000
    data = traces(pair, count)
    packed = pack(data, small(data).layout, seed=3, noise_on_device=on_device)
    mu = torch.from_numpy(data.draws("mu")[1])[packed.order]
    left, right = (x.double() - mu for x in realised(packed.observations).values())
    assert abs(float(torch.corrcoef(torch.stack([left, right]))[0, 1])) < 5 / math.sqrt(count)


def test_noise_tells_nothing_of_the_draws_whatever_the_seeds() -> None:
    """Simulations and noise are keyed by seed and trace alike; made of the same numbers, x would leak into y."""
    count, alarm = 2000, 5 / math.sqrt(2000)
    model = et.Model(noisy)
    data = TraceBatch.from_traces(
        list(run(model, indices=range(count), seed=3, draw_observations=False)), model.addresses
    )
    packed = pack(data, InferenceNetwork(SMALL, {"image": (4, 5)}, "noisy").layout, seed=3, epoch=0)
    mu = data.draws("mu")[1][packed.order]
    noise = ((packed.observations["image"].numpy() - mu[:, None, None]) / 2.0).reshape(count, -1)
    # What a stream makes of its numbers: uniforms of the first statement, for a control that shows a leak as one.
    stream, leaked = Stream(3), np.empty(count)
    for row, index in enumerate(data.index[packed.order].tolist()):
        stream.start(index)
        leaked[row] = stream.uniform()

    def related(a: np.ndarray, b: np.ndarray) -> float:
        return float(abs(np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]))

    assert related(leaked, np.abs(mu)) > alarm, "the control: these numbers made the draw"
    for voxel in noise.T:
        assert max(related(np.abs(voxel), np.abs(mu)), related(voxel, mu), related(np.abs(voxel), leaked)) < alarm


def test_noise_depends_on_the_trace_and_not_on_its_company() -> None:
    data = kept_parameters(40)
    layout = InferenceNetwork(SMALL, {"image": (4, 5), "count": ()}, "noisy").layout
    whole = pack(data, layout, seed=3, epoch=7)
    rows = np.array([31, 4, 17])
    part = pack(data.select(rows), layout, seed=3, epoch=7)
    for name in ("image", "count"):
        of_trace = dict(zip(whole.order.tolist(), whole.observations[name].numpy(), strict=True))
        for place, row in enumerate(part.order.tolist()):
            assert np.array_equal(part.observations[name].numpy()[place], of_trace[int(rows[row])])
    counts = whole.observations["count"].numpy()
    assert (counts == np.rint(counts)).all()
    assert (counts >= 0).all()


def test_philox_gives_the_known_answers() -> None:
    """The test vectors that its authors publish (Random123, kat_vectors)."""
    ones = 0xFFFFFFFF
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    for counter, key, expected in (
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (1 << 64) - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (pi, 0x299F31D0A4093822, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ):
        c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
        assert tuple(int(word) for word in philox((c0, c1, c2, c3), key)) == expected


def test_noise_of_traces_is_normal_and_independent() -> None:
    normals = standard_normals(torch.arange(2000), 301, key=77).double()
    assert abs(normals.mean()) < 5 / math.sqrt(normals.numel())
    assert abs(normals.var() - 1.0) < 5 * math.sqrt(2.0 / normals.numel())
    assert abs((normals**4).mean() - 3.0) < 5 * math.sqrt(96.0 / normals.numel())
    assert kstest(normals.flatten()[:100_000].numpy(), "norm").pvalue > 1e-4
    other = standard_normals(torch.arange(2000), 301, key=78).double()
    far = standard_normals(torch.arange(2000) + (1 << 32), 301, key=77).double()
    within = [(normals[:, :-lag], normals[:, lag:]) for lag in (1, 2, 3, 4)]
    for a, b in [*within, (normals[:-1], normals[1:]), (normals, other), (normals, far)]:
        for x, y in ((a, b), (a**2 - 1.0, b**2 - 1.0)):
            alarm = 5 * math.sqrt(float((x**2).mean() * (y**2).mean()) / x.numel())
            assert abs(float((x * y).mean())) < alarm
    assert torch.equal(standard_normals(torch.tensor([1999, 3]), 9, key=77).double(), normals[[1999, 3], :9])


def test_noise_drawn_where_the_network_runs_has_the_likelihoods_law() -> None:
    data = kept_parameters(2000)
    layout = InferenceNetwork(SMALL, {"image": (4, 5), "count": ()}, "noisy").layout
    first, second, again = (pack(data, layout, seed=3, epoch=e, noise_on_device=True) for e in (0, 1, 0))
    assert isinstance(first.observations["image"], Noisy)
    assert isinstance(first.observations["count"], torch.Tensor)  # a Poisson: drawn by its own algorithm
    mu = data.draws("mu")[1][first.order][:, None, None]
    one, two, three = ((realised(p.observations)["image"].numpy() - mu) / 2.0 for p in (first, second, again))
    assert np.array_equal(one, three)
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 5 / math.sqrt(one.size)
    for noise in (one, two):
        assert abs(noise.mean()) < 5 / math.sqrt(noise.size)
        assert abs(noise.var() - 1.0) < 5 * math.sqrt(2.0 / noise.size)
    size = np.abs(one.reshape(len(data), -1))
    assert abs(np.corrcoef(size.mean(1), mu[:, 0, 0])[0, 1]) < 5 / math.sqrt(len(data))
    rows = np.array([1031, 4, 17])
    part = pack(data.select(rows), layout, seed=3, epoch=0, noise_on_device=True)
    whole = dict(zip(first.order.tolist(), realised(first.observations)["image"], strict=True))
    for place, row in enumerate(part.order.tolist()):
        assert torch.equal(realised(part.observations)["image"][place], whole[int(rows[row])])


def test_noise_left_to_be_drawn_travels_with_the_batch() -> None:
    data = kept_parameters(20)
    network = InferenceNetwork(SMALL, {"image": (4, 5)}, "noisy")
    network.grow(data)
    packed = pack(data, network.layout, noise_on_device=True)
    loss = network.loss(packed)[0].item()
    assert loss != network.loss(pack(data, network.layout))[0].item()
    assert network.loss(pickle.loads(pickle.dumps(packed)))[0].item() == loss  # noqa: S301
    assert network.loss(Parcel.wrap(packed).unwrap())[0].item() == loss
    moved = packed.to("meta").observations["image"]
    assert isinstance(moved, Noisy)
    assert {moved.mean.device.type, moved.stddev.device.type, moved.trace.device.type} == {"meta"}


def test_noise_left_to_be_drawn_covers_repeated_missing_and_given_observations() -> None:
    def repeats() -> None:
        mu = et.sample(Normal(0.0, 1.0), name="mu")
        for n in range(1 + (mu > 0.0)):
            et.observe(Normal(mu, 1e-6 * (1 + n)), name="twice")
        et.observe(Normal(np.zeros(3), [1.0, 2.0, 3.0]), name="vector")

    data = traces(repeats, 400)
    layout = small(data).layout
    packed = pack(data, layout, noise_on_device=True)
    mu = torch.from_numpy(data.draws("mu")[1].astype(np.float32))[packed.order]
    assert all(isinstance(x, Noisy) for x in packed.observations.values())
    drawn = realised(packed.observations)
    torch.testing.assert_close(drawn["twice"][:, 0], mu, rtol=0, atol=1e-4)
    assert torch.equal(drawn["twice"][:, 1].isnan(), mu <= 0.0)
    torch.testing.assert_close(drawn["vector"].std(0), torch.tensor([1.0, 2.0, 3.0]), rtol=0.2, atol=0)
    given = replace(data, observes=tuple(replace(o, observed=True) for o in data.observes))
    for name, x in pack(given, layout, noise_on_device=True).observations.items():
        assert isinstance(x, torch.Tensor)
        torch.testing.assert_close(x, pack(data, layout, fresh_noise=False).observations[name], equal_nan=True)


def test_stored_values_are_taken_where_asked_or_where_they_were_given() -> None:
    data = traces(noisy, 30)
    layout = InferenceNetwork(SMALL, {"image": (4, 5)}, "noisy").layout
    stored = next(o for o in data.observes if o.name == "image")
    kept = pack(data, layout, fresh_noise=False)
    drawn = pack(data, layout)
    assert stored.values is not None
    assert np.allclose(kept.observations["image"].numpy(), stored.values[kept.order])
    assert not np.allclose(drawn.observations["image"].numpy(), stored.values[drawn.order])
    given = replace(data, observes=tuple(replace(o, observed=True) for o in data.observes))
    assert np.allclose(pack(given, layout).observations["image"].numpy(), stored.values[kept.order])


def test_instances_fill_their_slots_whatever_the_order_of_columns(tmp_path: Path) -> None:
    """Written unsorted and sorted, and as inference meets them: the k-th value of a name is the k-th observed."""

    def later_first() -> et.Model:
        def model() -> None:
            count = 1 + int(4 * et.sample(Uniform(0.0, 1.0), name="x"))
            for k in range(count):
                et.observe(Normal(float(k), 1e-6), name="hit")

        return et.Model(model, name="hits")

    simulate(later_first, tmp_path / "plain", 60, model="hits", workers=0, chunk_size=60)
    batch = Dataset(tmp_path / "plain").read(0)
    # Ids come in order of first use, and sorting orders columns by them: here the last instances first.
    backwards = replace(batch, observes=batch.observes[::-1])
    with ShardWriter(tmp_path / "backwards", Origin("hits", num_traces=60, chunk_size=60)) as writer:
        writer.write(backwards)
    sort(tmp_path / "backwards", tmp_path / "sorted", workers=0)
    for data in (batch, backwards, *Dataset(tmp_path / "sorted").batches()):
        (hits,) = pack(data, Layout({"hit": (4,)})).observations.values()
        there = ~hits.isnan()
        assert there.sum() > 60
        slots = torch.arange(4.0).expand(len(hits), 4)
        torch.testing.assert_close(hits[there], slots[there], rtol=0.0, atol=1e-4)
        assert (there.long().diff(dim=1) <= 0).all(), "filled from the first slot on"


def test_statements_that_share_a_name_in_one_trace_have_no_order() -> None:
    def both(where: float) -> None:
        mu = et.sample(Normal(0.0, 1.0), name="mu")
        if mu < where:
            et.observe(Normal(mu, 1.0), name="hit")
        if mu > -where:
            et.observe(Normal(mu, 1.0), name="hit")

    with pytest.raises(ValueError, match="different statements of one execution share the name 'hit'"):
        pack(traces(lambda: both(1.0), 40), Layout({"hit": (2,)}))
    (hits,) = pack(traces(lambda: both(0.0), 40), Layout({"hit": ()})).observations.values()
    assert not hits.isnan().any(), "one or the other in each trace"


def test_repeated_and_missing_observations() -> None:
    def repeats() -> None:
        mu = et.sample(Normal(0.0, 1.0), name="mu")
        for _ in range(1 + (mu > 0.0)):
            et.observe(Normal(mu, 1e-6), name="twice")
        if mu > 1.0:
            et.observe(Normal(mu, 1e-6), name="sometimes")

    data = traces(repeats, 60)
    network = small(data)
    assert network.layout.observations == {"twice": (2,), "sometimes": ()}
    packed = pack(data, network.layout)
    mu = torch.from_numpy(data.draws("mu")[1].astype(np.float32))[packed.order]
    twice, sometimes = packed.observations["twice"], packed.observations["sometimes"]
    torch.testing.assert_close(twice[:, 0], mu, rtol=0, atol=1e-4)
    assert torch.equal(twice[:, 1].isnan(), mu <= 0.0)
    assert torch.equal(sometimes.isnan(), mu <= 1.0)
    loss, _ = network.loss(packed)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    short = InferenceNetwork(SMALL, {"twice": (1,)}, "repeats")
    with pytest.raises(ValueError, match=r"observes .twice. more than once"):
        pack(data, short.layout)


def test_wrong_observations_are_named() -> None:
    data = traces(noisy, 5)
    with pytest.raises(ValueError, match=r"no trace observes 'picture'.*'count', 'image'"):
        pack(data, InferenceNetwork(SMALL, {"picture": (2,)}).layout)
    with pytest.raises(ValueError, match=r"shape \(4, 5\).*\(5, 4\)"):
        pack(data, InferenceNetwork(SMALL, {"image": (5, 4)}).layout)
    stored = next(o for o in data.observes if o.name == "image")
    broken = replace(
        data, observes=(replace(stored, parameters=(stored.parameters[0] * math.nan, stored.parameters[1])),)
    )
    with pytest.raises(ValueError, match="'image' holds NaN"):
        pack(broken, InferenceNetwork(SMALL, {"image": (4, 5)}).layout)


def test_unknown_addresses_keep_what_their_relatives_tell(batch: TraceBatch) -> None:
    network = InferenceNetwork(SMALL, {"y": ()}, "test")
    packed = pack(batch, network.layout)
    assert packed.groups == ()
    assert packed.unknown_draws == packed.num_draws
    assert set(packed.addresses.rows.tolist()) == {UNKNOWN}
    assert network.loss(packed)[0].item() == pytest.approx(-packed.unknown_log_prob / len(batch))
