"""Reports: numbers against known answers, figures that hold what they should, files that come back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from etalumis.inference import InferenceError
from etalumis.inference.figures.panels import span
from etalumis.inference.figures.style import category_label
from etalumis.report import Event, Sample, write_report
from etalumis.report.figure import draw
from etalumis.report.report import choose_variables
from etalumis.report.summary import compare, quality, summarise
from etalumis.report.tables import as_json, grids
from etalumis.report.variables import TAU_VARIABLES


def tau_sample(label: str, seed: int, size: int = 4000, markov: bool = False, shift: float = 0.0) -> Sample:
    """Something like the posterior of a τ event; importance weights with ESS near size / 2."""
    rng = np.random.default_rng(seed)
    energy = rng.normal(27.0, 1.0, size)
    values = {
        "px": rng.normal(0.5 + shift, 0.3, size),
        "py": rng.normal(-1.0, 0.3, size),
        "pz": rng.uniform(42.0, 52.0, size),
        "missing_et": rng.gamma(4.0, 0.2, size),
        "energy_1": energy,
        "energy_2": 47.0 - energy + rng.normal(0.0, 0.3, size),
        "decay_channel": rng.choice([2, 9, 3], p=[0.8, 0.15, 0.05], size=size),
    }
    return Sample(
        label,
        values,
        np.zeros(size) if markov else rng.normal(0.0, 0.8, size),
        np.repeat(np.arange(4), size // 4) if markov else None,
        {"engine": label, "seconds": 2.0, "executions": size},
    )


@pytest.fixture
def event() -> Event:
    return Event(
        {"detector": np.arange(6.0).reshape(1, 2, 3)},
        {
            "px": 0.5,
            "py": -1.1,
            "pz": 47.0,
            "missing_et": 0.8,
            "energy_1": 27.0,
            "energy_2": 20.0,
            "decay_channel": 2.0,
        },
        {"decay_channel": ("e", "mu", "pi", "pi pi0")},
    )


# --- numbers --------------------------------------------------------------------------------------------------------


def test_weighted_moments_and_quantiles_are_those_of_the_weights() -> None:
    sample = Sample("IS", {"x": np.array([0.0, 1.0, 3.0])}, np.log([0.5, 0.25, 0.25]))
    assert sample.mean("x") == pytest.approx(1.0)
    assert sample.std("x") == pytest.approx(math.sqrt(0.5 * 1.0 + 0.25 * 0.0 + 0.25 * 4.0))
    assert sample.quantiles("x", np.array([0.4, 0.6, 1.0])).tolist() == [0.0, 1.0, 3.0]
    assert sample.ess == pytest.approx(1.0 / (0.25 + 2 * 0.0625))
    with pytest.raises(ValueError, match="between 0 and 1"):
        sample.quantiles("x", np.array([40.0]))
    with pytest.raises(InferenceError, match="all 2 traces have weight zero"):
        Sample("IS", {"x": np.zeros(2)}, np.full(2, -np.inf)).mean("x")


def test_quantiles_of_zero_weight_are_never_answered() -> None:
    sample = Sample("IS", {"x": np.array([-100.0, 1.0, 2.0])}, np.array([-np.inf, 0.0, 0.0]))
    assert sample.quantiles("x", np.array([0.0, 0.5, 1.0])).tolist() == [1.0, 1.0, 2.0]


def test_zero_weights_count_but_do_not_show() -> None:
    sample = Sample("IS", {"x": np.array([0.0, 100.0])}, np.array([0.0, -np.inf]))
    assert sample.mean("x") == 0.0
    assert span("x", [sample], None, None)[1] < 100.0


def test_agreement_is_in_standard_deviations() -> None:
    """Means 0.5 apart, standard deviations 1 and 2: the shift is over their root mean square."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=200_000)
    z = (z - z.mean()) / z.std()
    one = Sample("a", {"x": z}, np.zeros(len(z)))
    other = Sample("b", {"x": 2.0 * z + 0.5}, np.zeros(len(z)))
    found = compare("x", one, other, discrete=False)
    assert found.mean_shift == pytest.approx(0.5 / math.sqrt(2.5))
    assert found.std_ratio == pytest.approx(2.0)
    assert found.probability_shift is None


def test_agreement_of_categories_is_the_largest_difference_in_probability() -> None:
    one = Sample("a", {"c": np.array([0, 0, 1, 1])}, np.zeros(4))
    other = Sample("b", {"c": np.array([0, 2, 2, 2])}, np.zeros(4))
    assert compare("c", one, other, discrete=True).probability_shift == pytest.approx(0.75)


def test_a_variable_without_spread_agrees_with_itself_and_with_nothing_else() -> None:
    one, other = (Sample(label, {"x": np.full(8, value)}, np.zeros(8)) for label, value in (("a", 1.0), ("b", 2.0)))
    same, different = compare("x", one, one, discrete=False), compare("x", one, other, discrete=False)
    assert (same.mean_shift, same.std_ratio) == (0.0, 1.0)
    assert different.mean_shift == math.inf


def test_chains_that_sit_in_different_channels_are_caught_though_the_momentum_looks_fine() -> None:
    sample = tau_sample("RMH", 3, markov=True)
    assert quality(sample, TAU_VARIABLES).rhat < 1.01
    stuck = dict(sample.values) | {"decay_channel": np.repeat([2, 2, 2, 9], 1000)}
    found = quality(Sample("RMH", stuck, sample.log_weights, sample.chain), TAU_VARIABLES)
    assert found.worst == "decay_channel"
    assert found.rhat is None  # infinite: no chain moves between channels


def test_a_channel_that_mixes_slowly_has_the_larger_rhat_and_the_smaller_ess() -> None:
    sample = tau_sample("RMH", 3, markov=True)
    slow = np.concatenate(
        [np.full(700, 2), np.full(300, 9), np.full(1000, 2), np.full(400, 9), np.full(600, 2), np.full(1000, 9)]
    )
    found = quality(
        Sample("RMH", dict(sample.values) | {"decay_channel": slow}, sample.log_weights, sample.chain), TAU_VARIABLES
    )
    assert found.worst == "decay_channel"
    assert found.rhat > 1.05
    assert found.ess < 100.0


def test_a_rare_category_does_not_spoil_the_rhat() -> None:
    """1 % of the draws, all in one chain by chance: says nothing about mixing."""
    channel = np.random.default_rng(0).choice(2, size=4000)
    channel[:40] = 9
    chain = np.repeat(np.arange(4), 1000)
    assert quality(Sample("RMH", {"decay_channel": channel}, np.zeros(4000), chain), ["decay_channel"]).rhat < 1.02
    often = np.where(np.arange(4000) < 400, 9, channel)
    assert quality(Sample("RMH", {"decay_channel": often}, np.zeros(4000), chain), ["decay_channel"]).rhat > 1.05


def test_quality_reads_cost_from_the_posterior() -> None:
    found = quality(tau_sample("IC", 5), TAU_VARIABLES)
    assert (found.engine, found.wall_time_s, found.executions, found.traces) == ("IC", 2.0, 4000, 4000)
    assert found.ess_per_second == pytest.approx(found.ess / 2.0)
    assert found.pareto_k < 0.7
    assert found.rhat is None


# --- tables -----------------------------------------------------------------------------------------------------------


def test_tables_hold_every_posterior_and_variable() -> None:
    samples = [tau_sample("IC", 1), tau_sample("RMH", 2, markov=True)]
    summary = summarise(samples, TAU_VARIABLES, prior=tau_sample("prior", 3))
    text = "\n".join(grid.markdown() for grid in grids(summary))
    for word in ("IC", "RMH", "px", "missing_et", "decay_channel", "IC / RMH"):
        assert f" {word} " in text
    numbers = json.loads(as_json(summary))
    assert [q["label"] for q in numbers["posteriors"]] == ["IC", "RMH"]
    assert set(numbers["marginals"]) == set(TAU_VARIABLES) - {"decay_channel"}
    assert len(numbers["agreement"]) == len(TAU_VARIABLES)


def test_json_has_null_where_a_number_is_infinite() -> None:
    one, other = (Sample(label, {"x": np.full(8, value)}, np.zeros(8)) for label, value in (("a", 1.0), ("b", 2.0)))
    numbers = json.loads(as_json(summarise([one, other], ["x"])))
    assert numbers["agreement"][0]["mean_shift"] is None


# --- figures ----------------------------------------------------------------------------------------------------------


def test_figure_of_a_tau_event_has_the_panels_of_figure_8(event: Event) -> None:
    samples = [tau_sample("IC", 1), tau_sample("RMH", 2, markov=True)]
    figure = draw(samples, TAU_VARIABLES, tau_sample("prior", 3), event.truth, event.labels, "an event")
    joint, channel = figure.axes[6], figure.axes[7]
    assert len(figure.axes) == 8
    assert joint.get_ylabel() == "energy of 2nd product [GeV]"
    assert [text.get_text() for text in channel.get_yticklabels()][:2] == ["π ◂", "9"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["IC", "RMH", "prior", "true value"]


def test_marginal_panels_show_the_truth_and_integrate_to_one(event: Event) -> None:
    figure = draw([tau_sample("IC", 1)], TAU_VARIABLES, None, event.truth)
    axes = figure.axes[0]
    assert axes.get_lines()[0].get_xdata()[0] == event.truth["px"]
    heights, edges, _ = axes.patches[0].get_data()
    assert heights @ np.diff(edges) == pytest.approx(1.0, abs=0.01)


def test_a_handful_of_points_gets_coarse_bins_and_no_contour() -> None:
    few = tau_sample("IS", 1, size=12)
    figure = draw([tau_sample("IC", 1), few], TAU_VARIABLES)
    both = draw([tau_sample("IC", 1), tau_sample("RMH", 2)], TAU_VARIABLES)
    assert len(figure.axes[6].collections) < len(both.axes[6].collections)
    assert len(figure.axes[0].patches[2].get_data().values) <= 12


def test_other_simulators_get_a_grid_of_marginals() -> None:
    rng = np.random.default_rng(0)
    values = {"mu": rng.normal(size=500), "count": rng.poisson(3.0, 500)}
    figure = draw([Sample("RMH", values, np.zeros(500), np.repeat(np.arange(2), 250))], ["mu", "count"])
    assert [axes.get_xlabel() for axes in figure.axes] == ["mu", "probability of count"]


def test_channels_are_written_in_symbols() -> None:
    assert category_label("nu_tau pi0 pi0 pi-") == "2π⁰ π⁻"
    assert category_label("pi 2pi0") == "π 2π⁰"
    assert category_label("K pi0") == "K π⁰"


# --- the whole ------------------------------------------------------------------------------------------------------


def test_report_writes_figure_and_numbers(tmp_path: Path, event: Event) -> None:
    samples = [tau_sample("IC", 1), tau_sample("RMH", 2, markov=True)]
    summary = write_report(samples, tmp_path / "report", event)
    written = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert written == ["posterior.pdf", "posterior.png", "posterior.svg", "report.json", "report.md"]
    assert (tmp_path / "report" / "posterior.png").read_bytes().startswith(b"\x89PNG")
    assert (
        json.loads((tmp_path / "report" / "report.json").read_text())["posteriors"][0]["ess"] == summary.quality[0].ess
    )


def test_documents_are_replaced_and_not_written_over(tmp_path: Path) -> None:
    """What an interruption could leave half written is another file, which then takes the name."""
    samples = [tau_sample("IC", 1, 100)]
    write_report(samples, tmp_path, title="first")
    for name in ("report.md", "report.json"):
        (tmp_path / f"old-{name}").hardlink_to(tmp_path / name)
    write_report([tau_sample("RMH", 2, 100)], tmp_path, title="second")
    assert "first" in (tmp_path / "old-report.md").read_text()
    assert "second" in (tmp_path / "report.md").read_text()
    assert "IC" in (tmp_path / "old-report.json").read_text()


def test_variables_are_those_that_all_posteriors_share() -> None:
    one = Sample("a", {"x": np.zeros(4), "y": np.zeros(4)}, np.zeros(4))
    other = Sample("b", {"y": np.zeros(4)}, np.zeros(4))
    assert choose_variables([one, other]) == ["y"]
    with pytest.raises(ValueError, match=r"x: not one number.*\['y'\]"):
        choose_variables([one, other], ["x"])
    with pytest.raises(ValueError, match="tag"):
        choose_variables([one, Sample("c", {"z": np.zeros(4)}, np.zeros(4))])


def test_events_come_back_as_they_were_saved(tmp_path: Path, event: Event) -> None:
    event.save(tmp_path / "event.npz")
    back = Event.load(tmp_path / "event.npz")
    assert np.array_equal(back.observe["detector"], event.observe["detector"])
    assert back.truth == event.truth
    assert back.labels == event.labels
    assert [path.name for path in tmp_path.iterdir()] == ["event.npz"]


def test_events_are_plain_npz_files_of_any_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "theirs.npz", obs0=8.0, obs1=9.0)
    assert {name: float(v) for name, v in Event.load(tmp_path / "theirs.npz").observe.items()} == {
        "obs0": 8.0,
        "obs1": 9.0,
    }
    Event({"file": np.ones(2)}).save(tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz") as arrays:
        assert arrays["file"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("content", [b"", b"not an archive"])
def test_a_file_that_is_no_event_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "event.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"not an \.npz file"):
        Event.load(tmp_path / "event.npz")
    with pytest.raises(ValueError, match="there is no event file"):
        Event.load(tmp_path / "nothing.npz")


def test_an_event_of_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "event.npz", detector=np.array([{}, None], dtype=object))
    with pytest.raises(ValueError, match=r"not an \.npz file of plain arrays"):
        Event.load(tmp_path / "event.npz")
