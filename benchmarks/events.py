"""Three events of different decay channels: do Markov chains and one trained network agree, and which is cheaper?

    python -m benchmarks.events --json [--output FOLDER] [--figure PATH] [demo.rmh.steps=240000 ...]
    python -m benchmarks.events --json --quick      # the τ decays in Python; everything runs, nothing converges

The demo (``etalumis demo simulator=pythia_tau``) thrice, with one network: the same sizes, the same checks. The events
are chosen by a rule before anything is inferred: of each of the three most frequent channels whose products shower, the
first event of the demo's seed that the demo's rule takes (20 GeV visible). Of muons, nearly as frequent as electrons,
no more than 2 GeV reach the calorimeter, far below its noise: their images say nothing.

Both engines go on, as many executions at a time as the demo makes, until their effective sample size and R̂ are within
the demo's limits; whether they agree has no say in it.

Costs are seconds of processor time: the wall time on a core of one's own, and hardly longer on a busy one. An
effective sample is one of the weights' ESS of IC, and of the smallest bulk ESS over the demo's variables of RMH. In
the paper 7.68 M traces of RMH took 115 hours on a node, 2 M of IC half an hour on 24: 230 times, training not counted.

Like the demo this goes on where it stopped, in the folder ``--output``; words with ``=`` are the demo's settings.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from benchmarks import common
from benchmarks.common import Result, Settings, significant
from etalumis import demo
from etalumis.conf import simulation
from etalumis.conf.build import build_model
from etalumis.conf.compose import compose, plain
from etalumis.execution import Simulator
from etalumis.inference import Posterior
from etalumis.inference.diagnostics import ess_weights
from etalumis.inference.executions import join
from etalumis.inference.figures.canvas import canvas, finished
from etalumis.inference.figures.marginals import draw_panel, legend
from etalumis.inference.figures.samples import Sample
from etalumis.inference.figures.style import category_label
from etalumis.report import Event, write_report
from etalumis.report.report import show
from etalumis.report.summary import Quality, Summary, quality
from etalumis.report.variables import TAU_VARIABLES
from etalumis.report.verdict import LARGEST_RHAT, LEAST_ESS, Check, judge, verdict_grid
from etalumis.storage.manifest import write_atomically

SIMULATOR, QUICK_SIMULATOR = "pythia_tau", "tau"
# The three most frequent channels whose products shower, as each simulator calls them.
CHANNELS = {
    "pythia_tau": {"pi_pi0": "nu_tau pi0 pi-", "e": "nu_tau e- nu_ebar", "pi": "nu_tau pi-"},
    "tau": {"pi_pi0": "pi pi0", "e": "e", "pi": "pi"},
}
COSTS = "costs.json"
MOST_ROUNDS, QUICK_ROUNDS = 8, 2  # of as many executions as in the demo
SEEDS_APART = 100  # of two rounds
# Half of the moves at the channel, as in the demo, leaves few for the momenta; fewer that follow its prior do as well.
MOVES = ["demo.rmh.branch_share=0.0", "demo.rmh.dependants_share=0.2"]
PAPER = 230
_MILLI = 1e3


class Outcome(NamedTuple):
    """An event inferred by all engines."""

    name: str
    event: Event
    samples: list[Sample]
    summary: Summary
    checks: list[Check]

    def quality(self, label: str) -> Quality:
        """Quality of a posterior."""
        return next(quality for quality in self.summary.quality if quality.label == label)

    def spent(self, label: str) -> float:
        """Seconds of processor time that inferring took."""
        return float(next(sample for sample in self.samples if sample.label == label).info["core_seconds"])

    def each(self, label: str) -> float:
        """Seconds of processor time for an effective sample."""
        return self.spent(label) / self.quality(label).ess


# --- steps ------------------------------------------------------------------------------------------------------------


def infer(config: dict[str, Any], rounds: int) -> Iterator[Outcome]:
    """Simulate and train once, then infer each event; what is done already is not done again."""
    output, sizes, console = Path(config["output"]), config["demo"], Console(stderr=True, width=100)
    demo.remember(config, output)
    model = build_model(config["simulator"])
    with costing(output, "simulate"):
        demo.simulate(config, "train", sizes["num_traces"], seed=config["seed"])
        demo.simulate(config, "valid", sizes["valid_traces"], seed=config["seed"] + 1)
    with costing(output, "train"):
        demo.train(config)
    demo.keep_prior(config)
    for name, channel in CHANNELS[model.name].items():
        folder = output / name
        event = demo.held_out_event(model, sizes["event"] | {"channel": channel}, folder / "event.npz")
        infer_ic(config, model, event, folder, rounds)
        demo.infer_stored(config, model, event, folder)
        infer_rmh(config, model, event, folder, rounds)
        title = f"{demo.TITLE.format(simulator=model.name)}: {channel}"
        yield judged(name, event, folder, Sample.of(Posterior.load(output / "prior"), "prior"), title, console)


def judged(name: str, event: Event, folder: Path, prior: Sample, title: str, console: Console) -> Outcome:
    """The demo's tables and checks of an event; they go to ``console``, and with a figure into its folder."""
    samples = demo.load_samples(folder)
    summary = write_report(samples, folder, event, prior, title=title)
    console.rule(f"[bold]{title}", align="left")
    show(summary, console)
    checks = judge(summary)
    console.print(verdict_grid(checks).rich())
    return Outcome(name, event, samples, summary, checks)


def infer_ic(config: dict[str, Any], model: Simulator, event: Event, folder: Path, rounds: int) -> None:
    """As many executions as in the demo, and as many again until the weights stand by the demo's limit."""
    if (folder / "post_ic").exists():
        return
    parts: list[Posterior] = []
    for number in range(rounds):
        place = folder / f"ic-{number}"
        demo.infer_ic(config | {"seed": config["seed"] + SEEDS_APART * number}, model, event, place)
        parts.append(Posterior.load(place / "post_ic"))
        weights = np.concatenate([part.log_weights for part in parts])
        if ess_weights(weights) >= LEAST_ESS:
            break
    info = parts[0].info | {key: sum(part.info[key] for part in parts) for key in ("core_seconds", "seconds")}
    info["executions"] = sum(part.info["executions"] for part in parts)
    Posterior(join(model, [part.traces for part in parts]), weights, info=info).save(folder / "post_ic")


def infer_rmh(config: dict[str, Any], model: Simulator, event: Event, folder: Path, rounds: int) -> None:
    """Markov chains of the demo's length, and as much again until they stand by the demo's limits."""
    if (folder / "post_rmh").exists():
        return
    settings, engine = config["demo"]["rmh"], demo.chains_engine(config, folder / "chains")
    for steps in range(settings["steps"], rounds * settings["steps"] + 1, settings["steps"]):
        total = settings["chains"] * steps
        with costing(folder, "RMH"), simulation.progress("RMH", total, "steps") as report:
            kept = demo.kept_states(settings, steps)
            posterior = engine.run(model, event.observe, kept, config["seed"] + 3, demo.counting(report))
        found = quality(Sample.of(posterior, "RMH"), TAU_VARIABLES)
        if found.rhat is not None and found.rhat < LARGEST_RHAT and found.ess >= LEAST_ESS:
            break
    spent = costs(folder)["RMH"]
    posterior.info |= {"core_seconds": spent["core"], "seconds": spent["wall"], "steps": steps}
    posterior.save(folder / "post_rmh")


@contextmanager
def costing(folder: Path, step: str) -> Iterator[None]:
    """Add the time of the body to the step's, which is kept in the folder for when it is gone on with."""
    core, wall = demo.core_seconds(), time.perf_counter()
    try:
        yield
    finally:
        before = costs(folder)
        known = before.get(step, {"core": 0.0, "wall": 0.0})
        spent = {
            "core": known["core"] + demo.core_seconds() - core,
            "wall": known["wall"] + time.perf_counter() - wall,
        }
        write_atomically(folder / COSTS, (json.dumps(before | {step: spent}) + "\n").encode())


def costs(folder: Path) -> dict[str, dict[str, float]]:
    """Seconds of each step: of processor time, and on the clock."""
    path = folder / COSTS
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


# --- results ----------------------------------------------------------------------------------------------------------


def agreement(outcome: Outcome) -> Result:
    """How many of the demo's checks an event passes."""
    failed = [f"{check.what} {_text(check.value)}" for check in outcome.checks if not check.passed]
    passed = len(outcome.checks) - len(failed)
    note = "failed: " + "; ".join(failed) if failed else "; ".join(f"{c.what} {_text(c.value)}" for c in outcome.checks)
    return Result(f"{outcome.name}_agreement", None, len(outcome.checks), passed, None, "checks passed", 1, note)


def cost(outcome: Outcome) -> Result:
    """Seconds per effective sample of IC and of RMH, inference alone."""
    ic, rmh = (outcome.quality(label) for label in ("IC", "RMH"))
    note = (
        f"IC: ESS {ic.ess:.0f} in {outcome.spent('IC'):.0f} s ({ic.wall_time_s:.0f} s on the clock); RMH: ESS "
        f"{rmh.ess:.0f} in {outcome.spent('RMH'):.0f} s ({rmh.wall_time_s:.0f} s on the clock); the paper: {PAPER}"
    )
    return _ratio(f"{outcome.name}_rmh_vs_ic", outcome.each("IC"), outcome.each("RMH"), note)


def cost_of_all(outcomes: Sequence[Outcome], output: Path) -> Iterator[Result]:
    """The same over all events, without and with the training, and where training begins to pay.

    Every event is inferred to the effective sample size that RMH reached.
    """
    wanted = [outcome.quality("RMH").ess for outcome in outcomes]
    ic, rmh = (
        sum(outcome.each(label) * ess for outcome, ess in zip(outcomes, wanted, strict=True)) for label in ("IC", "RMH")
    )
    steps = {step: spent["core"] for step, spent in costs(output).items()}
    before, number, total = sum(steps.values()), len(outcomes), sum(wanted)
    yield _ratio("rmh_vs_ic", ic / total, rmh / total, f"{number} events, to the ESS of RMH; the paper: {PAPER}")
    spent = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in steps.items())
    yield _ratio("rmh_vs_ic_with_training", (ic + before) / total, rmh / total, f"{number} events share {spent}")
    saved = (rmh - ic) / number
    pays = significant(before / saved) if saved > 0.0 else None
    note = "from so many such events on a network costs less than chains" if pays else "chains are cheaper here"
    yield Result("training_pays", None, None, pays, None, "events", 1, note)


def _ratio(name: str, ours: float, theirs: float, note: str) -> Result:
    unit = "ms/effective sample"
    return Result(
        name, significant(theirs / ours), None, significant(_MILLI * ours), significant(_MILLI * theirs), unit, 1, note
    )


def _text(value: float | None) -> str:
    return "∞" if value is None else f"{value:.3g}"


def draw(outcomes: Sequence[Outcome], prior: Sample, path: Path) -> None:
    """A column per event, a row per variable: IC and RMH with the true values."""
    figure, axes = canvas(len(TAU_VARIABLES), len(outcomes), 3.4, 1.75, extra=0.9)
    for column, outcome in zip(axes.T, outcomes, strict=True):
        truth, labels = outcome.event.truth, outcome.event.labels
        for place, variable in zip(column, TAU_VARIABLES, strict=True):
            draw_panel(place, variable, outcome.samples[:2], prior, truth, labels)
        column[0].set_title(category_label(labels["decay_channel"][int(truth["decay_channel"])]))
    legend(figure, outcomes[0].samples[:2], True, True, "")
    finished(figure, path)


def results(settings: Settings, output: Path | None, figure: Path | None, words: Sequence[str]) -> Iterator[Result]:
    """``EVENT_agreement`` and ``EVENT_rmh_vs_ic`` of each event, then the sums over all."""
    simulator = QUICK_SIMULATOR if settings.quick else SIMULATOR
    defaults = [f"simulator={simulator}", *(["demo=quick"] if settings.quick else []), *MOVES]
    with ExitStack() as stack:
        if output is None:
            output = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = dict(plain(compose("demo", [*defaults, f"output={output}", *words])))
        outcomes = []
        for outcome in infer(config, QUICK_ROUNDS if settings.quick else MOST_ROUNDS):
            outcomes.append(outcome)
            yield agreement(outcome)
            yield cost(outcome)
        yield from cost_of_all(outcomes, output)
        if figure is not None:
            draw(outcomes, Sample.of(Posterior.load(output / "prior"), "prior"), figure)


def main(argv: list[str] | None = None) -> int:
    """The options of this benchmark, then what every one does."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--output", type=Path, help="folder of everything, to go on in; by default a temporary one")
    parser.add_argument("--figure", type=Path, help="draw the posteriors there (PNG, SVG, PDF)")
    arguments, others = parser.parse_known_args(argv)
    words = [word for word in others if "=" in word]
    others = [word for word in others if "=" not in word]
    measure: Callable[[Settings], Iterator[Result]] = partial(
        results, output=arguments.output, figure=arguments.figure, words=words
    )
    return common.main("events", measure, others, pinned=False)


if __name__ == "__main__":
    sys.exit(main())
