"""Chains are judged on every draw: repeated names, draws of a branch, arrays element by element, with a name or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Bernoulli, Categorical, Normal
from etalumis.inference.address_values import MOST_ELEMENTS, address_values
from etalumis.inference.by_address import chain_columns

LENGTH = 800


def repeated() -> None:
    et.sample(Normal(0.0, 1.0), name="s")
    for _ in range(2):
        et.sample(Normal(0.0, 3.0), name="x")


def branch() -> None:
    """In nearly every trace, so that whether there is one says nothing."""
    if et.sample(Bernoulli(0.97), name="k"):
        et.sample(Normal(0.0, 3.0), name="x")


def array() -> None:
    et.sample(Normal(0.0, 1.0), name="s")
    et.sample(Normal(np.zeros(2), 3.0), name="x")


def only_array() -> None:
    et.sample(Normal(np.zeros((2, 2)), 3.0), name="x")
    et.observe(Normal(0.0, 1.0), name="y")


def categories() -> None:
    et.sample(Normal(0.0, 1.0), name="s")
    et.sample(Categorical(np.full((2, 3), 1.0 / 3.0)), name="x")


def unnamed_array() -> None:
    et.sample(Normal(0.0, 1.0), name="s")
    et.sample(Normal(np.zeros(2), 3.0))


def unnumbered() -> None:
    et.sample(Normal(np.zeros(2), 3.0), name="x")


def chained(model: Callable[[], None], sort: bool, length: int = LENGTH) -> et.Posterior:
    """Independent draws as four chains; sorted by the last number drawn, each chain has values of its own."""
    prior = et.prior(et.Model(model), num_traces=length, seed=1, progress=False)
    traces = prior.traces
    last = traces.value[traces.value_offsets[traces.offsets[1:]] - 1]
    order = np.argsort(last, kind="stable") if sort else np.arange(length)
    return et.Posterior(traces, np.zeros(length), order, np.repeat(np.arange(4), length // 4), markov=True)


@pytest.mark.parametrize("model", [repeated, branch, array, only_array, categories])
def test_chains_that_disagree_on_a_name_that_is_no_number_are_flagged(model: Callable[[], None]) -> None:
    apart, mixed = chained(model, sort=True), chained(model, sort=False)
    assert "x" not in apart.numbers
    assert mixed.diagnose().ok, mixed.diagnose()
    assert mixed.ess > 0.5 * LENGTH
    found = apart.diagnose()
    (problem,) = found.problems
    assert "chains disagree" in problem
    assert " x" in problem
    assert found.numbers["largest_rhat"] > 1.5
    assert apart.ess == found.numbers["ess"] < 20.0
    assert "no fault" not in repr(found)


def test_their_chains_are_drawn() -> None:
    pytest.importorskip("matplotlib")
    labels = [axes.get_ylabel() for axes in chained(unnumbered, sort=True).diagnose().figures["chains"].axes]
    assert labels[0].replace("\n", " ") == "x (element 1)"
    assert len(chained(unnumbered, sort=False).plot_addresses().axes) == 2


def test_unnamed_arrays_are_judged() -> None:
    problem = chained(unnamed_array, sort=True).diagnose().problems[-1]  # the log density disagrees, too
    assert "1 unnamed draws disagree" in problem
    assert "__Normal__1 (element 1) (R̂" in problem
    assert chained(unnamed_array, sort=False).diagnose().ok


def test_few_independent_draws_of_names_elsewhere_are_a_problem_and_without_a_name_a_note() -> None:
    """Every half of a chain goes through the same five values of the array, each held for 20 steps."""
    for model, name in ((array, "x"), (unnamed_array, "")):
        base = chained(model, sort=False)
        traces = base.traces
        held = np.tile(np.repeat(np.arange(5), LENGTH // 40), 8)
        places = traces.value_offsets[traces.offsets[:-1] + 1][:, None] + np.arange(2)
        values = traces.value.copy()
        values[places] = values[places[held]]
        slow = et.Posterior(replace(traces, value=values), np.zeros(LENGTH), None, base.chains, markov=True)
        found = slow.diagnose()
        texts = found.problems if name else found.notes
        assert any("few independent draws" in text and name in text for text in texts), found
        assert found.ok == (not name)


def test_arrays_have_a_row_for_each_element() -> None:
    chains = chained(only_array, sort=False)
    rows = chains.by_address(et.prior(et.Model(only_array), 500, seed=2, progress=False))
    assert [row["element"] for row in rows] == [0, 1, 2, 3]
    assert {row["name"] for row in rows} == {"x"}
    values = chains.values("x").reshape(LENGTH, 4)
    assert [row["mean"] for row in rows] == pytest.approx(values.mean(axis=0).tolist())
    assert [row["std"] for row in rows] == pytest.approx(values.std(axis=0).tolist())
    assert all(2.0 < row["prior_std"] < 4.0 for row in rows)
    weighted = et.posterior(et.Model(only_array), {"y": 0.0}, num_traces=300, progress=False)
    assert len(weighted.diagnose().addresses) == 4


def test_what_is_not_judged_is_said() -> None:
    def large() -> None:
        et.sample(Normal(np.zeros(1000), 1.0), name="image")

    chains = chained(large, sort=False, length=200)
    found = chains.diagnose()
    elements = [row["element"] for row in found.addresses]
    assert len(elements) == MOST_ELEMENTS
    assert (min(elements), max(elements)) == (0, 999)
    assert any("image (of 1,000)" in note for note in found.notes)

    def many() -> None:
        for _ in range(300):
            et.sample(Normal(0.0, 1.0))
        for _ in range(2):
            et.sample(Normal(0.0, 1.0), name="late")

    found = chained(many, sort=True, length=100).diagnose()
    assert [row["name"] for row in found.addresses].count("late") == 2  # those with a name are not left out
    assert any("102 draws" in note for note in found.notes)
    assert any("late" in problem for problem in found.problems)


def test_arrays_whose_size_varies_and_traces_without_any_draw() -> None:
    def growing() -> None:
        et.sample(Normal(np.zeros(2 if et.sample(Bernoulli(0.5), name="k") else 3), 1.0), name="x")

    chains = chained(growing, sort=False)
    rows = {row["element"]: row for row in chains.by_address() if row["name"] == "x"}
    assert sorted(rows) == [0, 1, 2]
    assert rows[1]["probability"] == pytest.approx(1.0)
    assert rows[2]["probability"] == pytest.approx(1.0 - chains.mean("k"))
    last = next(there for there in address_values(chains.traces).values() if there.element == 2)
    assert set(chain_columns(chains, last)) == {"values", "presence"}

    def nothing() -> None:
        et.observe(Normal(0.0, 1.0), name="y")

    assert et.posterior(et.Model(nothing), {"y": 0.0}, num_traces=20, progress=False).by_address() == []
