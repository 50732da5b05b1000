"""The network as a proposer: the same numbers as the training path, values inside the support, unknown addresses."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import etalumis as et
from etalumis.distributions import Categorical, Normal, Poisson, Uniform
from etalumis.execution import AddressBook, Answer, Request, Trace, TraceBatch, run_lockstep
from etalumis.networks import InferenceNetwork, ProposalError, checkpoint, pack
from etalumis.networks.proposer import NetworkProposer
from etalumis.optim import RowAdam
from etalumis.simulators.classics import gaussian, gaussian_posterior
from network_models import SMALL, every_family, small, traces

OBSERVED = {"y": 0.7, "pair": np.array([0.5, -0.2])}


def controlled(trace: Trace) -> list[int]:
    return [n for n, d in enumerate(trace.distributions) if trace.controlled[n] and d.shape == ()]


def log_q_of_training_path(network: InferenceNetwork, batch: TraceBatch) -> dict[tuple[int, int], float]:
    """log q by (trace, step), from the packed loss."""
    packed = pack(batch, network.layout, fresh_noise=False)
    with torch.no_grad():
        parts = network.log_q(packed)
    steps = [(rank, step) for step, size in enumerate(packed.batch_sizes) for rank in range(size)]
    found = {}
    for group, part in zip(packed.groups, parts, strict=True):
        for position, value in zip(group.position.tolist(), part.tolist(), strict=True):
            rank, step = steps[position]
            found[int(packed.order[rank]), step] = value
    return found


def proposed(network: InferenceNetwork, model: et.Model, indices: Iterable[int], batch_size: int = 16) -> list[Trace]:
    runs = run_lockstep(model, network.proposer(), OBSERVED, indices, seed=11, batch_size=batch_size)
    return sorted(runs, key=lambda trace: trace.index)


TRANSFORMER = {"kind": "transformer", "hidden": 8, "heads": 2}
CONTINUOUS = ("Normal", "Uniform", "Beta", "Exponential", "Gamma", "LogNormal", "Weibull", "TruncatedNormal", "Mixture")


@pytest.mark.parametrize(
    "settings",
    [
        *({"head": {"kind": head, "hidden": 8}} for head in ("per_address", "shared", "film")),
        {"core": {"kind": "gru", "hidden": 6, "layers": 2}},
        {"core": TRANSFORMER},
        {"core": {**TRANSFORMER, "observation": "prefix", "layers": 1}},
        {"proposals": {"Uniform": "histogram", "Normal": "spline"}, "bins": 12, "segments": 5},
        {"proposals": dict.fromkeys(CONTINUOUS, "spline"), "segments": 5},
    ],
    ids=lambda s: "-".join(map(str, next(iter(s.values())).values()))[:40],
)
def test_proposals_in_lockstep_have_the_log_q_of_the_loss(settings: dict[str, Any]) -> None:
    network = small(traces(every_family, 300), **settings)
    model = et.Model(every_family)
    executed = proposed(network, model, range(60))
    batch = TraceBatch.from_traces(executed, model.addresses)
    given = tuple(replace(o, observed=True) for o in batch.observes)
    expected = log_q_of_training_path(network, replace(batch, observes=given))
    compared = 0
    for place, trace in enumerate(executed):
        for step, draw in enumerate(controlled(trace)):
            assert trace.log_proposals[draw] == pytest.approx(expected[place, step], abs=1e-9)
            compared += 1
        assert trace.log_weight == trace.log_weight
    assert compared > 300


class Evaluating:
    """Asks a network for the density of the prior's draws."""

    def __init__(self, inner: NetworkProposer) -> None:
        self.inner = inner

    def begin(self, slots: Sequence[int], observe: Mapping[str, Any]) -> None:
        self.inner.begin(slots, observe)

    def propose(self, requests: Sequence[Request], addresses: AddressBook) -> Sequence[Answer]:
        given = [request._replace(value=request.distribution.draw(request.stream)) for request in requests]
        answers = self.inner.propose(given, addresses)
        assert [value for value, _ in answers] == [request.value for request in given]
        return answers


def test_given_values_keep_and_have_the_log_q_of_the_loss() -> None:
    network = small(traces(every_family, 300))
    model = et.Model(every_family)
    runs = run_lockstep(model, Evaluating(network.proposer()), OBSERVED, range(40), seed=11)
    executed = sorted(runs, key=lambda trace: trace.index)
    batch = TraceBatch.from_traces(executed, model.addresses)
    given = tuple(replace(o, observed=True) for o in batch.observes)
    expected = log_q_of_training_path(network, replace(batch, observes=given))
    for place, trace in enumerate(executed):
        for step, draw in enumerate(controlled(trace)):
            assert trace.log_proposals[draw] == pytest.approx(expected[place, step], abs=1e-9)


def test_given_values_out_of_reach_are_errors_that_name_the_address() -> None:
    def model() -> None:
        et.sample(Uniform(0.0, 1.0), name="a", address="a")
        et.sample(Uniform(0.0, 1.0), name="b", address="b")
        et.observe(Normal(0.0, 1.0), name="y")

    class Outside(Evaluating):
        def propose(self, requests: Sequence[Request], addresses: AddressBook) -> Sequence[Answer]:
            values = (1.5 if addresses[r.address].base == "b" and r.slot == 3 else 0.5 for r in requests)
            return self.inner.propose([r._replace(value=v) for r, v in zip(requests, values, strict=True)], addresses)

    network = small(traces(model, 20))
    with pytest.raises(ProposalError, match=r"can't reach the value 1\.5 of a Uniform at address .*b"):
        list(run_lockstep(et.Model(model), Outside(network.proposer()), {"y": 0.0}, range(8)))


@pytest.mark.parametrize(
    "settings",
    [
        {"core": {"kind": "gru", "hidden": 16}},
        {"core": {"kind": "transformer", "hidden": 16, "heads": 2}},
        {"core": {"kind": "gru", "hidden": 16}, "proposals": {"Normal": "spline"}},
    ],
    ids=["gru", "transformer", "spline"],
)
def test_posterior_of_a_gaussian_through_a_trained_checkpoint(settings: dict[str, Any], tmp_path: Path) -> None:
    batch = traces(gaussian, 400)
    network = InferenceNetwork.for_batch(
        {**SMALL, **settings, "head": {"kind": "shared", "hidden": 16}}, batch, "gaussian"
    )
    optimizer, losses = RowAdam(network, lr=0.02), []
    for step in range(80):
        optimizer.zero_grad()
        loss, _ = network.loss(pack(batch, network.layout, epoch=step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < losses[0] - 0.5
    checkpoint.save(tmp_path / "network.pt", network)
    observed = {"obs0": 2.0, "obs1": 3.0}
    engine = et.IC(tmp_path / "network.pt")
    post = et.posterior(et.Model(gaussian), observed, engine, num_traces=1500, seed=2)
    mean, stddev = gaussian_posterior(2.0, 3.0)
    assert post.ess > 0.7 * 1500  # the prior alone gives far less
    error = stddev / math.sqrt(post.ess)
    assert abs(post.mean("mu") - mean) < 5.0 * error
    assert post.std("mu") == pytest.approx(stddev, abs=5.0 * error)


@pytest.mark.parametrize("core", [{"kind": "lstm", "hidden": 7}, TRANSFORMER], ids=["lstm", "transformer"])
def test_proposals_do_not_depend_on_the_batch_size(core: dict[str, Any]) -> None:
    network = small(traces(every_family, 300), core=core)
    one, many = (proposed(network, et.Model(every_family), range(20), batch_size=size) for size in (1, 13))
    for a, b in zip(one, many, strict=True):
        assert [str(v) for v in a.names] == [str(v) for v in b.names]
        for draw in controlled(a):
            assert a.values[draw] == pytest.approx(b.values[draw], rel=1e-9)
            assert type(a.values[draw]) is type(b.values[draw]) in (int, float)


def test_values_stand_in_the_priors_support_whatever_the_weights() -> None:
    network = small(traces(every_family, 300)).float()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(12.0)
    for trace in proposed(network, et.Model(every_family), range(60)):
        for n in controlled(trace):
            d, value = trace.distributions[n], trace.values[n]
            assert math.isfinite(trace.log_proposals[n])
            assert math.isfinite(trace.log_priors[n]) or d.family == "Mixture"
            if d.family in ("Uniform", "Beta", "TruncatedNormal"):
                low, high = d.support()
                assert low < value < high


def test_addresses_without_a_row_come_from_the_prior_and_step_the_core() -> None:
    def before() -> None:
        a = et.sample(Normal(0.0, 1.0), name="a", address="a")
        et.sample(Normal(a, 1.0), name="c", address="c")
        et.observe(Normal(a, 1.0), name="y")

    def after() -> None:
        a = et.sample(Normal(0.0, 1.0), name="a", address="a")
        et.sample(Uniform(0.0, 1.0), name="b", address="b")
        et.sample(Normal(a, 1.0), name="c", address="c")
        et.observe(Normal(a, 1.0), name="y")

    network = small(traces(before, 50))
    proposer = network.proposer()
    executed = list(run_lockstep(et.Model(after), proposer, {"y": 1.0}, range(40)))
    (address,) = proposer.unknown
    assert (address.base, proposer.unknown[address], proposer.proposed) == ("b", 40, 80)
    assert {t.log_proposals[1] for t in executed} == {0.0}
    without = list(run_lockstep(et.Model(before), network.proposer(), {"y": 1.0}, range(40)))
    a, b = (np.array([t["a"] for t in sorted(ts, key=lambda t: t.index)]) for ts in (executed, without))
    c, d = (np.array([t["c"] for t in sorted(ts, key=lambda t: t.index)]) for ts in (executed, without))
    assert np.allclose(a, b)
    assert not np.isclose(c, d).any()  # the core has seen that a draw was made in between


def test_draws_beyond_max_controlled_come_from_the_prior() -> None:
    network = small(traces(every_family, 100), max_controlled=3)
    model = et.Model(every_family)
    proposer = network.proposer()
    executed = list(run_lockstep(model, proposer, OBSERVED, range(30)))
    for trace in executed:
        for n in controlled(trace)[3:]:
            assert trace.log_proposals[n] == trace.log_priors[n]
    assert proposer.beyond == sum(len(controlled(t)) - 3 for t in executed) > 30
    assert proposer.proposed == 90


def test_importance_weights_of_an_untrained_network_are_unbiased() -> None:
    """The evidence of a model where it is known: E[w] over executions equals p(y)."""

    def model() -> None:
        k = et.sample(Categorical([0.3, 0.7]))
        n = et.sample(Poisson(1.5))
        mu = et.sample(Normal(0.0, 1.0))
        u = et.sample(Uniform(-1.0, 1.0))
        et.observe(Normal(mu + k + n + u, 1.0), name="y")

    rng = np.random.default_rng(0)
    network = InferenceNetwork.for_batch(SMALL, traces(model, 50))
    executed = run_lockstep(et.Model(model), network.proposer(), {"y": 1.3}, range(4000))
    weights = np.exp([t.log_weight for t in executed])
    count = 1_000_000
    mean = (rng.uniform(size=count) > 0.3) + rng.poisson(1.5, count) + rng.uniform(-1, 1, count)
    density = np.exp(-((1.3 - mean) ** 2) / 4.0) / math.sqrt(4.0 * math.pi)
    error = math.hypot(weights.std() / math.sqrt(len(weights)), density.std() / math.sqrt(count))
    assert abs(weights.mean() - density.mean()) < 5 * error < 0.1 * density.mean()


def test_observations_are_checked() -> None:
    network = small(traces(every_family, 30))
    with pytest.raises(ValueError, match=r"observe\['pair'\], of shape \(2,\)"):
        network.proposer().begin([0], {"y": 0.0})
    with pytest.raises(ValueError, match=r"observe\['pair'\] has shape \(3,\)"):
        network.proposer().begin([0], {"y": 0.0, "pair": np.zeros(3)})
