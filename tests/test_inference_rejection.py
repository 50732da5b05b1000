"""Rejection loops: markers, patterns, weights by amortised rejection sampling, and the bias of leaving it out."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Beta, Distribution, Normal, Uniform
from etalumis.execution import AddressBook, Answer, Mark, Request, run
from etalumis.execution.trace import ACCEPTED, PASS
from etalumis.inference import InferenceError, rejection
from etalumis.inference.loops import Finder, marked_visits
from inference_checks import LOOP, TOLERANCE, ByHand, Proposals, loop, loop_exact, z_weighted


def flat(prior: Distribution) -> Distribution:
    return Uniform(0.0, 1.0)


def low(prior: Distribution) -> Distribution:
    return Beta(2.0, 5.0)


EVIDENCE = 0.416276  # log p(y) of the loop, by quadrature
BETA: Proposals = {"m": flat, "x": low}  # functions that worker processes can import


def marked() -> None:
    """The loop of the checks, marked."""
    m = et.sample(Uniform(0.0, 1.0), name="m")
    with et.rejection("x") as passes:
        for _ in passes:
            x = et.sample(Uniform(0.0, 1.0), name="x")
            if x < 0.2 + 0.8 * m:
                break
    et.observe(Normal(x, 0.1), name="y")


def unmarked() -> None:
    """The same with addresses that a pattern finds, and a draw behind the loop."""
    m = et.sample(Uniform(0.0, 1.0), name="m", address="mean")
    while (x := et.sample(Uniform(0.0, 1.0), name="x", address="generator/loop")) >= 0.2 + 0.8 * m:
        pass
    shift = et.sample(Normal(0.0, 1.0), control=False, address="shift")
    et.observe(Normal(x + 0.0 * shift, 0.1), name="y")


def inside(y: float, upper: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """∫_0^upper Normal(y; x, 0.1) dx."""
    return np.array([math.erf((a - y) / 0.1 / math.sqrt(2)) + math.erf(y / 0.1 / math.sqrt(2)) for a in upper]) / 2


class PassDependent(ByHand):
    """Proposals that differ from pass to pass, as those of a network that remembers do: the paper's do not."""

    def proposer(self) -> ByHand:
        return PassDependent(self.proposals)

    def answer(self, request: Request, addresses: AddressBook) -> Answer:
        if request.name == "x":
            passes = addresses[request.address].instance
            self.proposals = {**self.proposals, "x": lambda prior: Beta(1.0 + 1.0 / passes, 1.0 + 4.0 / passes**2)}
        return super().answer(request, addresses)


def test_markers_say_where_passes_begin_and_end() -> None:
    trace = next(t for t in run(et.Model(marked), observe=LOOP, indices=range(100), seed=1) if len(t) == 4)
    scored = trace.log_likelihood
    assert trace.marks == [
        Mark(PASS + "x", 1, 1, 0.0),
        Mark(PASS + "x", 2, 2, 0.0),
        Mark(PASS + "x", 3, 3, 0.0),
        Mark(ACCEPTED + "x", 1, 4, 0.0),
        Mark(PASS + "x", 4, 4, 0.0),
    ]
    (visit,) = marked_visits(trace.marks)
    assert (visit.loop, visit.starts, visit.end) == ("x", (1, 2, 3), 4)
    assert scored != 0.0
    assert trace.tags == []


def test_markers_change_nothing() -> None:
    def plain() -> None:
        m = et.sample(Uniform(0.0, 1.0), name="m")
        while (x := et.sample(Uniform(0.0, 1.0), name="x")) >= 0.2 + 0.8 * m:
            pass
        et.observe(Normal(x, 0.1), name="y")

    ours = et.posterior(et.Model(marked), LOOP, et.IC(ByHand(BETA)), num_traces=200, seed=2)
    theirs = et.posterior(et.Model(plain), LOOP, et.IC(ByHand(BETA)), num_traces=200, seed=2)
    assert ours.log_weights.tolist() == theirs.log_weights.tolist()
    assert ours.traces.tags == ()


@pytest.mark.parametrize("most", [None, 2])
def test_every_pass_weighed_is_exact(most: int | None) -> None:
    """With proposals whose ratio has a variance in every pass. That of Beta(2, 5) has none where it is rejected."""
    mild: Proposals = {"m": lambda prior: Uniform(0.0, 1.0), "x": lambda prior: Beta(1.0, 1.3)}
    post = et.posterior(et.Model(marked), LOOP, et.IC(ByHand(mild), max_instances=most), num_traces=6000, seed=3)
    assert abs(z_weighted(post, post.values("m"), loop_exact())) < TOLERANCE
    later = et.posterior(et.Model(marked), LOOP, et.IC(ByHand(BETA), max_instances=1), num_traces=200, seed=3).traces
    first = np.array([later.addresses[a].instance == 1 for a in later.address])
    assert (later.log_prob[~first] == later.log_q[~first]).all()
    assert (later.log_prob[first] != later.log_q[first])[1::2].any()


def test_amortised_rejection_sampling_is_right_and_accepted_only_is_not() -> None:
    def inferred(kind: Any) -> et.Posterior:
        engine = et.IC(ByHand(BETA), rejection=kind, extra_runs=5)
        return et.posterior(et.Model(marked), LOOP, engine, num_traces=2500, seed=4)

    right, wrong = inferred("amortised"), inferred("accepted_only_biased")
    assert loop_exact() == pytest.approx(0.4616, abs=1e-4)
    assert abs(z_weighted(right, right.values("m"), loop_exact())) < TOLERANCE
    assert abs(right.log_evidence - EVIDENCE) < TOLERANCE * right.log_evidence_error
    assert abs(wrong.mean("m") - 0.517) < 0.02
    assert z_weighted(wrong, wrong.values("m"), loop_exact()) > TOLERANCE
    assert right.info["loops"] == 2500
    assert right.info["extra_executions"] == 2 * 5 * 2500
    assert right.info["rejected_passes"] == wrong.info["rejected_passes"] > 0
    assert wrong.info["extra_executions"] == 0
    assert "biased" in wrong.info["warnings"][0]
    assert right.info["proposed_draws"] == wrong.info["proposed_draws"]  # of the traces alone


def remembering(count: int) -> tuple[float, float]:
    """z-scores of the mean and of the evidence, with proposals that differ from pass to pass."""
    engine = et.IC(PassDependent(BETA), rejection="amortised", extra_runs=5)
    post = et.posterior(et.Model(marked), LOOP, engine, num_traces=count, seed=21)
    z = (post.log_evidence - EVIDENCE) / post.log_evidence_error
    return z_weighted(post, post.values("m"), loop_exact()), z


def test_proposals_may_depend_on_the_rejected_passes() -> None:
    assert np.abs(remembering(2000)).max() < TOLERANCE


@pytest.mark.slow
def test_the_rate_of_the_first_pass_would_be_wrong_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: as if all passes were alike."""

    class First(rejection._Rates):
        def __init__(self, trace: et.Trace, visit: Any) -> None:
            super().__init__(trace, replace(visit, starts=visit.starts[:1]))

    monkeypatch.setattr(rejection, "_Rates", First)
    assert np.abs(remembering(6000)).max() > TOLERANCE


def test_rates_have_the_expectations_that_the_weights_need() -> None:
    """Without a likelihood the mean weight is 1, however few extra executions estimate the rates."""

    def given() -> None:
        with et.rejection("x") as passes:
            for _ in passes:
                if et.sample(Uniform(0.0, 1.0), name="x") < 0.3:
                    break

    post = et.posterior(
        et.Model(given), {}, et.IC(ByHand(BETA), rejection="amortised", extra_runs=2), num_traces=3000, seed=6
    )
    weights = np.exp(post.log_weights)
    assert abs(weights.mean() - 1.0) < TOLERANCE * weights.std() / math.sqrt(len(weights))


def nested() -> None:
    """u below a twice bounded: by an inner loop, and by an outer one that accepts with probability u."""
    m = et.sample(Uniform(0.0, 1.0), name="m")
    with et.rejection("outer") as outer:
        for _ in outer:
            with et.rejection("inner") as inner:
                for _ in inner:
                    u = et.sample(Uniform(0.0, 1.0), name="u")
                    if u < 0.2 + 0.8 * m:
                        break
            if et.sample(Uniform(0.0, 1.0), name="v") < u:
                break
    et.observe(Normal(u, 0.1), name="y")


def nested_exact(y: float) -> float:
    """p(u | m) = 2 u / a² below a = 0.2 + 0.8 m."""
    m = (np.arange(400) + 0.5) / 400
    u = (np.arange(2000) + 0.5) / 2000
    density = np.exp(-0.5 * ((u - y) / 0.1) ** 2) * u
    likelihood = np.array([(density * (u < 0.2 + 0.8 * k)).sum() / (0.2 + 0.8 * k) ** 2 for k in m])
    return float((m * likelihood).sum() / likelihood.sum())


def test_nested_loops() -> None:
    proposals: Proposals = {"u": lambda prior: Beta(2.0, 4.0), "v": lambda prior: Beta(1.0, 2.0)}
    engine = et.IC(ByHand(proposals), rejection="amortised", extra_runs=4)
    post = et.posterior(et.Model(nested), {"y": 0.3}, engine, num_traces=700, seed=8)
    assert abs(z_weighted(post, post.values("m"), nested_exact(0.3))) < TOLERANCE
    assert post.info["loops"] == 2 * 700  # the inner loops of rejected outer passes do not count
    wrong = et.IC(ByHand(proposals), rejection="accepted_only_biased")
    post = et.posterior(et.Model(nested), {"y": 0.3}, wrong, num_traces=2500, seed=8)
    assert abs(z_weighted(post, post.values("m"), nested_exact(0.3))) > TOLERANCE


def test_patterns_find_loops_that_nobody_marked() -> None:
    engine = et.IC(ByHand(BETA), rejection="amortised", extra_runs=5, loops={"x": "^generator/"})
    post = et.posterior(et.Model(unmarked), LOOP, engine, num_traces=400, seed=9)
    assert abs(z_weighted(post, post.values("m"), loop_exact())) < TOLERANCE
    assert post.info["loops"] == 400
    marks = et.posterior(
        et.Model(marked), LOOP, et.IC(ByHand(BETA), rejection="amortised", extra_runs=5), num_traces=400, seed=9
    )
    assert post.info["rejected_passes"] == marks.info["rejected_passes"]
    assert post.log_weights == pytest.approx(marks.log_weights)  # the same executions, told apart in two ways


def ordered() -> None:
    """A pass draws its first address twice, and accepts by a last draw that no network answers."""
    m = et.sample(Uniform(0.0, 1.0), name="m", address="mean")
    while True:
        a = max(et.sample(Uniform(0.0, 1.0), name="x", address="loop/x") for _ in range(2))
        if et.sample(Uniform(0.0, 1.0), address="loop/accept", control=False) < 1.0 - a * m:
            break
    et.observe(Normal(a, 0.1), name="y")


def test_a_pattern_may_say_what_the_last_draw_of_a_pass_is() -> None:
    m, a = np.meshgrid((np.arange(500) + 0.5) / 500, (np.arange(500) + 0.5) / 500, indexing="ij")
    density = 2.0 * a * (1.0 - a * m)  # of the larger one and its acceptance
    likelihood = (density * np.exp(-0.5 * ((a - 0.4) / 0.1) ** 2)).sum(axis=1) / density.sum(axis=1)
    exact = float((m[:, 0] * likelihood).sum() / likelihood.sum())
    proposals: Proposals = {"m": flat, "x": lambda prior: Beta(1.5, 3.0)}
    pattern = "^loop/(x|(?P<last>accept))$"
    engine = et.IC(ByHand(proposals), rejection="amortised", extra_runs=5, loops={"pair": pattern})
    post = et.posterior(et.Model(ordered), {"y": 0.4}, engine, num_traces=700, seed=17)
    assert abs(z_weighted(post, post.values("m"), exact)) < TOLERANCE
    wrong = et.IC(ByHand(proposals), rejection="accepted_only_biased", loops={"pair": pattern})
    post = et.posterior(et.Model(ordered), {"y": 0.4}, wrong, num_traces=3000, seed=17)
    assert abs(z_weighted(post, post.values("m"), exact)) > TOLERANCE


def twice() -> None:
    """Two visits to a loop at the same address, with a draw between them."""
    m = et.sample(Uniform(0.0, 1.0), name="m", address="mean")
    for name in ("y0", "y1"):
        while (x := et.sample(Uniform(0.0, 1.0), name="x", address="loop")) >= 0.2 + 0.8 * m:
            pass
        shift = et.sample(Normal(0.0, 0.01), address="shift")
        et.observe(Normal(x + 0.0 * shift, 0.1), name=name)


def test_visits_to_the_same_loop_are_told_apart() -> None:
    a = 0.2 + 0.8 * (m := (np.arange(4000) + 0.5) / 4000)
    likelihood = inside(0.3, a) * inside(0.4, a) / a**2
    exact = float((m * likelihood).sum() / likelihood.sum())
    engine = et.IC(ByHand(BETA), rejection="amortised", extra_runs=5, loops={"x": "^loop$"})
    post = et.posterior(et.Model(twice), {"y0": 0.3, "y1": 0.4}, engine, num_traces=1000, seed=10)
    assert abs(z_weighted(post, post.values("m"), exact)) < TOLERANCE
    assert post.info["loops"] == 2 * 1000


def test_neither_batches_nor_blocks_nor_workers_change_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(**how: Any) -> list[float]:
        engine = et.IC(ByHand(BETA), rejection="amortised", extra_runs=3, **how)
        return et.posterior(et.Model(marked), LOOP, engine, num_traces=60, seed=11).log_weights.tolist()

    expected = weights()
    assert weights(batch_size=7) == expected
    assert weights(workers=2) == expected
    monkeypatch.setattr("etalumis.inference.network_runs.HELD", 17)
    assert weights() == expected


@pytest.mark.slow
def test_events_of_one_run() -> None:
    engine = et.IC(ByHand(BETA), rejection="amortised", extra_runs=4)
    posts = et.posteriors(et.Model(marked), [LOOP, {"y": 0.6}], engine, num_traces=1200, seed=12)
    a = 0.2 + 0.8 * (m := (np.arange(4000) + 0.5) / 4000)
    for post, y in zip(posts, (0.3, 0.6), strict=True):
        likelihood = inside(y, a) / a
        assert abs(z_weighted(post, post.values("m"), float((m * likelihood).sum() / likelihood.sum()))) < TOLERANCE


def test_a_network(tmp_path: Path) -> None:
    from etalumis.networks import InferenceNetwork

    model = et.Model(marked)
    network = InferenceNetwork.for_batch(
        {"core": {"kind": "lstm", "hidden": 16}}, et.prior(model, 300, seed=8).traces, simulator="marked"
    )
    post = et.posterior(model, LOOP, et.IC(network, rejection="amortised", extra_runs=3), num_traces=250, seed=13)
    assert abs(z_weighted(post, post.values("m"), loop_exact())) < TOLERANCE
    assert post.info["extra_executions"] == 2 * 3 * 250
    post.save(tmp_path / "post")
    assert et.Posterior.load(tmp_path / "post").log_weights.tolist() == post.log_weights.tolist()


@pytest.mark.parametrize("limits", [{"max_instances": 2}, {"max_instances": 1, "max_controlled": 2}])
def test_every_pass_of_a_networks_proposals_weighed_is_exact(limits: dict[str, int]) -> None:
    """Whether late passes share a row of the network, or come from the prior."""
    from etalumis.networks import InferenceNetwork

    model = et.Model(marked)
    config = {"core": {"kind": "lstm", "hidden": 16}, **limits}
    network = InferenceNetwork.for_batch(config, et.prior(model, 300, seed=8).traces, simulator="marked")
    post = et.posterior(model, LOOP, et.IC(network), num_traces=1200, seed=15)
    assert abs(z_weighted(post, post.values("m"), loop_exact())) < TOLERANCE
    assert (post.info["draws_beyond"] > 0) == ("max_controlled" in limits)
    late = et.posterior(model, LOOP, et.IC(network, max_instances=1), num_traces=300, seed=16)
    passes = np.array([late.traces.addresses[a].instance for a in late.traces.address])
    assert (late.traces.log_prob[passes > 1] == late.traces.log_q[passes > 1]).all()
    assert (late.traces.log_prob[passes == 1] != late.traces.log_q[passes == 1]).any()


def test_a_trace_whose_extra_executions_are_all_rejected_weighs_nothing() -> None:
    narrow: Proposals = {"x": lambda prior: Uniform(0.0, 1.0)}
    engine = et.IC(ByHand(narrow), rejection="amortised", extra_runs=1)
    post = et.posterior(et.Model(marked), LOOP, engine, num_traces=400, seed=14)
    none = np.isneginf(post.log_weights)
    assert none.sum() == post.info["never_accepted"] > 0
    assert "Raise extra_runs" in post.info["warnings"][1]
    assert abs(z_weighted(post, post.values("m"), loop_exact())) < TOLERANCE


class ByPlace(ByHand):
    """Proposes the draws at one base address."""

    def __init__(self, base: str) -> None:
        super().__init__({})
        self.base = base

    def proposer(self) -> ByHand:
        return ByPlace(self.base)

    def answer(self, request: Request, addresses: AddressBook) -> Answer:
        if addresses[request.address].base != self.base:
            return super().answer(request, addresses)
        proposal = Beta(1.0, 1.6)
        value = proposal.draw(request.stream) if request.value is None else request.value
        return value, proposal.log_prob(value)


@pytest.mark.slow
def test_the_loop_of_pythia_that_draws_masses() -> None:
    """Nothing is observed, so weights have the mean 1; of the accepted passes alone they have not."""
    pytest.importorskip("pythia8mc", reason="Pythia is not installed")
    from etalumis.simulators.pythia_tau import PythiaTau

    model = et.Model(PythiaTau(control="all"))
    direct = re.compile(r"mGenerator\([^;]*\)\+0x\w+\]?$")
    met = dict.fromkeys(
        base
        for trace in run(model, indices=range(20), seed=3)
        for base in (model.addresses[a].base for a in trace.addresses)
        if direct.search(base)
    )
    masses, accept, *_ = met  # drawn in this order
    loops = {"masses": f"^({re.escape(masses)}|(?P<last>{re.escape(accept)}))$"}

    def weights(kind: Any, count: int) -> np.ndarray[Any, Any]:
        engine = et.IC(ByPlace(accept), rejection=kind, extra_runs=3, loops=loops, batch_size=8)
        post = et.posterior(model, {}, engine, num_traces=count, seed=18)
        assert post.info["rejected_passes"] > post.info["loops"] > count // 10
        return np.exp(post.log_weights)

    right, wrong = weights("amortised", 400), weights("accepted_only_biased", 2000)
    assert abs(right.mean() - 1.0) < TOLERANCE * right.std() / math.sqrt(len(right))
    assert abs(wrong.mean() - 1.0) > TOLERANCE * wrong.std() / math.sqrt(len(wrong))


# --- what is refused ----------------------------------------------------------------------------------------------


def overlapping() -> None:
    first, second = et.rejection("first"), et.rejection("second")
    for _ in range(2):
        first.__enter__()
        next(first)
        next(second)
        et.sample(Uniform(0.0, 1.0))
        first.__exit__(None, None, None)


def observing() -> None:
    with et.rejection("x") as passes:
        for _ in passes:
            x = et.sample(Uniform(0.0, 1.0))
            et.factor(-x)
            if x < 0.5:
                break


def conditioned() -> None:
    for name in ("a", "b"):
        et.sample(Uniform(0.0, 1.0), name=name, address="loop")


ARS: Callable[..., et.IC] = lambda **how: et.IC(ByHand({}), rejection="amortised", **how)  # noqa: E731


@pytest.mark.parametrize(
    ("model", "observe", "engine", "message"),
    [
        (overlapping, {}, ARS(), "'second' was still going when 'first' went on"),
        (observing, {}, ARS(), "something is observed inside of the rejection loop 'x'"),
        (conditioned, {"b": 0.2}, ARS(loops={"x": "loop"}), "something is observed inside of the rejection loop 'x'"),
        (unmarked, LOOP, ARS(loops={"one": "loop", "two": "^gen"}), "loops 'one' and 'two' both find the address"),
        (
            marked,
            LOOP,
            ARS(loops={"one": "marked"}),
            "loop 'x' is marked, and the pattern of 'one' finds the same draws",
        ),
    ],
)
def test_loops_that_make_no_sense_are_refused(
    model: Callable[[], None], observe: dict[str, float], engine: et.IC, message: str
) -> None:
    with pytest.raises(InferenceError, match=message):
        et.posterior(et.Model(model), observe, engine, num_traces=20, seed=1)


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ([(ACCEPTED, "x")], "'x' accepted a pass that never began"),
        ([(PASS, "x")], "'x' has no end"),
        ([(PASS, "x"), (PASS, "y"), (ACCEPTED, "x")], "'y' was still going when 'x' went on"),
    ],
)
def test_markers_that_make_no_sense_are_refused(marks: Sequence[tuple[str, str]], message: str) -> None:
    with pytest.raises(InferenceError, match=message):
        marked_visits([Mark(kind + loop, 1, 0, 0.0) for kind, loop in marks])


def test_a_simulator_with_memory_is_caught() -> None:
    calls = [0]

    def remembers() -> None:
        calls[0] += 1
        et.sample(Uniform(0.0, 1.0), address=f"call {calls[0] % 7}")
        with et.rejection("x") as passes:
            for _ in passes:
                if et.sample(Uniform(0.0, 1.0)) < 0.5:
                    break

    with pytest.raises(InferenceError, match="did not come to the rejection loop 'x' as before"):
        et.posterior(et.Model(remembers), {}, ARS(), num_traces=20, seed=1)


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="rejection is one of"):
        et.IC(ByHand({}), rejection="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="extra_runs"):
        et.IC(ByHand({}), extra_runs=0)
    with pytest.raises(ValueError, match="max_instances"):
        et.IC(ByHand({}), max_instances=0)
    with pytest.raises(ValueError, match="defensive"):
        et.IC(ByHand({}), defensive=0.1, rejection="amortised")
    with pytest.raises(ValueError, match="loops are for"):
        et.IC(ByHand({}), loops={"x": "loop"})
    with pytest.raises(ValueError, match="no regular expression"):
        ARS(loops={"x": "("})
    with pytest.raises(ValueError, match="chains need exact densities"):
        ARS().as_kernel()
    with pytest.raises(ValueError, match="needs a name"):
        et.rejection("")
    with pytest.raises(et.ModelError, match="outside of a running model"):
        next(et.rejection("x"))

    def no_pass() -> None:
        with et.rejection("x"):
            et.sample(Uniform(0.0, 1.0))

    with pytest.raises(et.ModelError, match="'x' ended without a pass"):
        next(run(et.Model(no_pass), indices=[0]))


def test_a_model_without_loops_is_told() -> None:
    post = et.posterior(et.Model(loop), LOOP, ARS(), num_traces=50, seed=1)
    assert "no execution met a rejection loop" in post.info["warnings"][1]
    assert post.log_weights == pytest.approx(post.traces.log_likelihood)
    assert Finder({}, AddressBook()).visits(next(run(et.Model(loop), observe=LOOP, indices=[0]))) == []
