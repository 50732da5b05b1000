"""The loop and its statements: what an engine may rely on whatever the model does."""

from __future__ import annotations

import math
import threading
from itertools import islice

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Beta, Categorical, Normal, Stream, Uniform
from etalumis.execution import (
    Address,
    Controller,
    Guided,
    Inflated,
    Observations,
    Prior,
    Reject,
    Replay,
    Request,
    run,
    run_lockstep,
)
from etalumis.execution.addresses import qualified_name, searched_name


def gaussian():
    mu = et.sample(Normal(1.0, 5**0.5), name="mu")
    et.observe(Normal(mu, 2**0.5), name="obs0")
    et.observe(Normal(mu, 2**0.5), name="obs1")
    et.tag(mu**2, name="mu_squared")
    return mu


def rejection():
    """A loop whose number of passes is random: one site, several instances."""
    while True:
        x = et.sample(Uniform(-1.0, 1.0))
        y = et.sample(Uniform(-1.0, 1.0))
        if x * x + y * y < 1.0:
            break
    et.observe(Normal(x, 0.1), name="x")
    return x


def execute(function, controller=None, observe=None, index=0, seed=0, **options):
    model = et.Model(function)
    trace = model.execute(controller or Prior(), Observations(observe or {}), Stream(seed), index=index, **options)
    return model, trace


class TestSample:
    def test_records_draws_observes_tags_and_result(self):
        model, trace = execute(gaussian)
        assert trace["mu"] == trace.result == trace.values[0]
        assert trace["mu_squared"] == trace.result**2
        assert [o.name for o in trace.observes] == ["obs0", "obs1"]
        assert not any(o.observed for o in trace.observes)
        assert trace.log_likelihood == 0.0
        assert trace.log_prior == Normal(1.0, 5**0.5).log_prob(trace.result)
        assert trace.log_weight == 0.0
        assert model.addresses[trace.addresses[0]] == Address("gaussian+1", "Normal", 1)

    def test_outside_a_model_is_an_error_that_names_the_way_in(self):
        with pytest.raises(et.ModelError, match=r"etalumis\.Model"):
            et.sample(Normal(0.0, 1.0))

    def test_equal_seed_and_index_give_equal_traces_whatever_ran_before(self):
        _, alone = execute(rejection, index=5, seed=3)
        model = et.Model(rejection)
        among = list(run(model, indices=range(8), seed=3))[5]
        assert among.values == alone.values
        _, other = execute(rejection, index=6, seed=3)
        assert other.values != alone.values

    def test_nested_models_keep_apart(self):
        inner = et.Model(lambda: et.sample(Normal(0.0, 1.0), name="inner"))

        def outer():
            a = et.sample(Normal(0.0, 1.0), name="a")
            trace = inner.execute(Prior(), Observations(), Stream(1), 0)
            b = et.sample(Normal(0.0, 1.0), name="b")
            return a, trace.result, b

        _, trace = execute(outer)
        assert trace.names == ["a", "b"]

    def test_array_draws(self):
        def arrays():
            return et.sample(Normal(np.zeros((2, 3)), 1.0), name="z")

        _, trace = execute(arrays)
        assert trace.result.shape == (2, 3)
        assert math.isclose(trace.log_prior, Normal(np.zeros((2, 3)), 1.0).log_prob(trace.result))

    def test_nan_density_names_address_and_parameters(self):
        class Broken(Controller):
            def choose(self, address, name, distribution, control, stream):
                return math.nan, 0.0

        with pytest.raises(et.DensityError, match=r"gaussian\+1.*Normal\(mean=1.0"):
            execute(gaussian, Broken())


class TestAddresses:
    def test_instances_count_by_base_and_family(self):
        model, trace = execute(rejection, index=3)
        addresses = [model.addresses[a] for a in trace.addresses]
        passes = len(addresses) // 2
        assert [a.instance for a in addresses] == [n for n in range(1, passes + 1) for _ in "xy"]
        assert addresses[0].base != addresses[1].base

    def test_families_at_one_line_are_told_apart(self):
        def mixed():
            for family in (Normal, Uniform, Normal):
                et.sample(family(0.0, 1.0))

        model, trace = execute(mixed)
        found = [(model.addresses[a].family, model.addresses[a].instance) for a in trace.addresses]
        assert found == [("Normal", 1), ("Uniform", 1), ("Normal", 2)]

    def test_all_draws_count_and_observes_count_apart(self):
        def model():
            et.sample(Normal(0.0, 1.0), name="a", address="here")
            et.observe(Normal(0.0, 1.0), name="y", address="here")
            et.sample(Normal(0.0, 1.0), control=False, address="here")
            et.sample(Normal(0.0, 1.0), address="here")

        built, trace = execute(model, observe={"a": 0.5})
        assert [built.addresses[a].instance for a in trace.addresses] == [1, 2, 3]
        assert built.addresses[trace.observes[0].address] == Address("here", "Normal", 1, "observe")

    def test_call_chain_distinguishes_callers_and_lines_are_relative(self):
        def helper():
            return et.sample(Normal(0.0, 1.0))

        def caller():
            return helper(), helper()

        def two_lines():
            a = helper()
            return a, helper()

        model, trace = execute(two_lines)
        bases = [model.addresses[a].base for a in trace.addresses]
        assert [b.rsplit(".", 1)[1] for b in bases] == ["helper+1", "helper+1"]
        assert bases[0] != bases[1]
        assert len(model.addresses[0].frames) == 2

    def test_statements_in_comprehensions_belong_to_the_function_around(self):
        def listed():
            return [
                et.sample(Normal(0.0, 1.0))
                for _ in range(2)
            ]  # fmt: skip

        model, trace = execute(listed)
        (base,) = {model.addresses[a].base for a in trace.addresses}
        assert base.endswith("listed+2"), "the line that Python 3.12 gives, where the comprehension is inlined"

    def test_qualified_names_without_the_codes_own(self):
        function = TestAddresses.test_qualified_names_without_the_codes_own
        assert qualified_name(function.__code__) == function.__qualname__
        assert searched_name(function.__code__) == function.__qualname__

    def test_dictionary_round_trip_and_merge(self):
        model, _ = execute(rejection, index=2)
        book = et.AddressBook.from_json(model.addresses.to_json())
        assert list(book) == list(model.addresses)
        other = et.AddressBook()
        other.intern("first", "Normal", 1)
        mapping = other.merge(book)
        assert [other[i] for i in mapping] == list(book)
        assert mapping[0] == 1
        assert (book.hashes() == other.hashes()[mapping]).all()


class TestConditioning:
    def test_observed_values_are_scored_and_kept(self):
        _, trace = execute(gaussian, observe={"obs0": 8.0, "obs1": 9.0})
        likelihood = Normal(trace.result, 2**0.5)
        assert trace.log_likelihood == pytest.approx(likelihood.log_prob(8.0) + likelihood.log_prob(9.0), rel=1e-12)
        assert trace.log_weight == pytest.approx(trace.log_likelihood)

    def test_a_conditioned_sample_counts_as_likelihood(self):
        _, trace = execute(gaussian, observe={"mu": 2.0})
        assert trace.result == 2.0
        assert trace.conditioned == [True]
        assert trace.controlled == [False]
        assert trace.log_prior == 0.0
        assert trace.log_likelihood == Normal(1.0, 5**0.5).log_prob(2.0)

    def test_a_conditioned_draw_advances_the_stream(self):
        def pair():
            return et.sample(Normal(0.0, 1.0), name="a"), et.sample(Normal(0.0, 1.0), name="b")

        _, free = execute(pair)
        _, held = execute(pair, observe={"a": 0.0})
        assert free["b"] == held["b"]

    def test_repeated_names_take_a_list_in_order(self):
        def chain():
            return [et.sample(Normal(0.0, 1.0), name="x") for _ in range(3)]

        _, trace = execute(chain, observe={"x": [1.0, 2.0, 3.0]})
        assert trace.result == [1.0, 2.0, 3.0]
        with pytest.raises(et.ObservationError, match="single value"):
            execute(chain, observe={"x": 1.0})
        with pytest.raises(et.ObservationError, match="lists 2 values"):
            execute(chain, observe={"x": [1.0, 2.0]})

    def test_values_of_a_list_may_differ_in_shape(self):
        def shapes():
            et.observe(Normal(np.zeros(2), 1.0), name="y")
            et.observe(Normal(np.zeros(3), 1.0), name="y")
            et.observe(Normal(0.0, 1.0), name="y")

        given = [np.ones(2), [2.0, 2.0, 2.0], 3.0]
        (trace,) = run(et.Model(shapes), observe={"y": given}, indices=[0])
        assert [np.shape(o.value) for o in trace.observes] == [(2,), (3,), ()]
        assert trace.observes[2].value == 3.0
        assert [a.tolist() for a in Observations({"y": given}).arrays("y")] == [[1.0, 1.0], [2.0, 2.0, 2.0], 3.0]
        assert [a.tolist() for a in Observations({"y": [1.0, 2.0]}).arrays("y")] == [[1.0, 2.0]]
        with pytest.raises(et.ObservationError, match=r"shape \(1,\).*shape \(3,\)"):
            execute(shapes, observe={"y": [np.ones(2), [1.0], 3.0]})
        with pytest.raises(et.ObservationError, match="neither a number nor an array"):
            execute(shapes, observe={"y": [np.ones(2), [1.0, [2.0, 3.0]], 3.0]})

    def test_a_list_of_the_observed_shape_is_one_value(self):
        def image():
            et.observe(Normal(np.zeros((2, 3)), 1.0), name="y")

        rows = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
        (trace,) = run(et.Model(image), observe={"y": rows}, indices=[0])  # all of it was used: no error at the end
        assert trace.observes[0].value.tolist() == rows
        (twice,) = run(et.Model(lambda: [image() for _ in range(2)]), observe={"y": [rows, rows]}, indices=[0])
        assert [o.value.tolist() for o in twice.observes] == [rows, rows]

    def test_listed_values_that_no_execution_asks_for_are_an_error_at_the_end(self):
        def some():
            for _ in range(1 + et.sample(Categorical([0.5, 0.5]))):
                et.observe(Normal(0.0, 1.0), name="y")

        assert len(list(run(et.Model(some), observe={"y": [0.0, 0.0]}, indices=range(20)))) == 20
        with pytest.raises(et.ObservationError, match=r"'y'\] lists 4 values, .* more than 2 times"):
            list(run(et.Model(some), observe={"y": [0.0, 0.0, 50.0, 60.0]}, indices=range(20)))

    def test_the_simulators_own_value_wins_or_is_overridden(self):
        def supplied():
            et.observe(Normal(0.0, 1.0), 3.0, name="y")

        _, trace = execute(supplied)
        assert trace.log_likelihood == Normal(0.0, 1.0).log_prob(3.0)
        with pytest.raises(et.ObservationError, match="override=True"):
            execute(supplied, observe={"y": 1.0})
        model = et.Model(supplied)
        trace = model.execute(Prior(), Observations({"y": 1.0}, override=True), Stream(0), 0)
        assert trace.log_likelihood == Normal(0.0, 1.0).log_prob(1.0)

    def test_a_name_that_no_execution_met_is_an_error_at_the_end(self):
        traces = run(et.Model(gaussian), observe={"obs2": 1.0}, indices=range(3))
        assert len(list(islice(traces, 3))) == 3
        with pytest.raises(et.ObservationError, match=r"'obs2'.*\['mu', 'obs0', 'obs1'\]"):
            next(traces)

    def test_a_name_met_in_some_branches_only_is_fine(self):
        def branching():
            if et.sample(Categorical([0.5, 0.5])):
                et.observe(Normal(0.0, 1.0), name="y")

        weights = [t.log_weight for t in run(et.Model(branching), observe={"y": 0.0}, indices=range(50))]
        assert {w == 0.0 for w in weights} == {True, False}

    def test_an_infinite_density_is_an_error(self):
        def pole():
            et.observe(Beta(0.5, 2.0), name="y")

        with pytest.raises(et.DensityError, match=r"infinite at address.*pole\+1"):
            execute(pole, observe={"y": 0.0})
        with pytest.raises(et.DensityError, match="factor 'f' of trace 0"):
            execute(lambda: et.factor(math.inf, name="f"))

    def test_wrong_shape_is_an_error(self):
        with pytest.raises(et.ObservationError, match=r"shape.*takes a list"):
            execute(gaussian, observe={"obs0": np.zeros(3)})

    def test_factor(self):
        def model():
            et.factor(-1.5)

        _, trace = execute(model)
        assert trace.log_weight == -1.5


class TestControllers:
    def test_replay_reproduces_and_draws_the_rest(self):
        model, trace = execute(rejection, index=4)
        values = dict(zip(trace.addresses, trace.values, strict=True))
        again = model.execute(Replay(values), Observations(), Stream(9), 0)
        assert again.values == trace.values
        assert again.log_proposal == 0.0
        del values[trace.addresses[0]]
        part = model.execute(Replay(values), Observations(), Stream(9), 0)
        assert part.values[0] != trace.values[0]
        assert part.log_proposals[0] == part.log_priors[0]

    def test_guided_weight_is_prior_over_proposal(self):
        proposal = Normal(7.0, 1.0)
        _, trace = execute(gaussian, Guided({"mu": proposal}))
        expected = Normal(1.0, 5**0.5).log_prob(trace.result) - proposal.log_prob(trace.result)
        assert trace.log_weight == pytest.approx(expected)

    def test_inflated_prior_is_weighted_back(self):
        _, trace = execute(gaussian, Inflated(3.0))
        wide = Normal(1.0, 3.0 * 5**0.5)
        assert trace.log_proposal == pytest.approx(wide.log_prob(trace.result))

    def test_inflation_leaves_uncontrolled_draws_alone(self):
        def model():
            et.sample(Normal(0.0, 1.0), control=False)

        _, trace = execute(model, Inflated(3.0))
        assert trace.log_weight == 0.0

    def test_reject_ends_the_execution_with_zero_weight(self):
        class Refuse(Controller):
            def choose(self, address, name, distribution, control, stream):
                raise Reject

        _, trace = execute(gaussian, Refuse())
        assert trace.ended == "rejected"
        assert trace.log_weight == -math.inf

    def test_zero_density_ends_only_where_asked(self):
        class Outside(Controller):
            def choose(self, address, name, distribution, control, stream):
                return 5.0, 0.0

        def model():
            et.sample(Uniform(0.0, 1.0))
            return "end"

        assert execute(model, Outside())[1].result == "end"
        _, trace = execute(model, Outside(), reject_zero=True)
        assert trace.ended == "rejected"


class Recorder:
    """A proposer that shifts the prior and remembers how many requests came together."""

    def __init__(self):
        self.rounds = []
        self.begun = 0

    def begin(self, slots, observe):
        self.begun += len(slots)

    def propose(self, requests, addresses):
        self.rounds.append(len(requests))
        answers = []
        for request in requests:
            assert isinstance(request, Request)
            value = request.distribution.draw(request.stream)
            answers.append((value, request.distribution.log_prob(value) - 0.25))
        return answers


class Threaded:
    suspendable = False

    def __call__(self):
        self.last = threading.get_ident()
        return rejection()


@pytest.mark.parametrize("function", [rejection, Threaded()], ids=["coroutines", "threads"])
class TestLockstep:
    @pytest.mark.parametrize("batch_size", [1, 7, 64])
    def test_equals_the_direct_run_whatever_the_batch(self, function, batch_size):
        direct = list(run(et.Model(rejection), observe={"x": 0.3}, indices=range(20), seed=1))
        proposer = Recorder()
        stepped = run_lockstep(et.Model(function), proposer, {"x": 0.3}, range(20), seed=1, batch_size=batch_size)
        stepped = sorted(stepped, key=lambda t: t.index)
        assert [t.values for t in stepped] == [t.values for t in direct]
        assert proposer.begun == 20
        assert max(proposer.rounds) == min(batch_size, 20)
        for trace in stepped:
            assert trace.log_weight == pytest.approx(trace.log_likelihood + 0.25 * len(trace))

    def test_closing_early_ends_suspended_executions(self, function):
        before = threading.active_count()
        traces = run_lockstep(et.Model(function), Recorder(), None, range(100), batch_size=8)
        next(traces)
        traces.close()
        assert threading.active_count() == before

    def test_an_error_in_the_model_reaches_the_caller(self, function):
        def wrong(inner=function):
            inner()
            raise ZeroDivisionError("in the simulator")

        wrong.suspendable = getattr(function, "suspendable", True)
        with pytest.raises(ZeroDivisionError):
            list(run_lockstep(et.Model(wrong), Recorder(), None, range(10), batch_size=4))

    def test_unused_observation_is_an_error(self, function):
        with pytest.raises(et.ObservationError, match="nothing"):
            list(run_lockstep(et.Model(function), Recorder(), {"nothing": 1.0}, range(3)))


def test_lockstep_answers_uncontrolled_and_array_draws_from_the_prior():
    def model():
        et.sample(Normal(np.zeros(2), 1.0))
        et.sample(Normal(0.0, 1.0), control=False)
        return et.sample(Normal(0.0, 1.0))

    proposer = Recorder()
    traces = list(run_lockstep(et.Model(model), proposer, None, range(5)))
    assert proposer.rounds == [5]
    assert all(t.log_weight == pytest.approx(0.25) for t in traces)
