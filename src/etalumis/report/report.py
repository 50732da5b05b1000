"""``etalumis report``: from saved posteriors to a figure and tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from etalumis.inference.figures.samples import Sample
from etalumis.inference.posterior import Posterior
from etalumis.report.event import Event
from etalumis.report.summary import Summary, summarise
from etalumis.report.tables import as_json, as_markdown, grids
from etalumis.report.variables import TAU_VARIABLES
from etalumis.storage.manifest import write_atomically

TITLE = "Posterior of one event"
_MOST_PANELS = 12


def write_report(
    samples: Sequence[Sample],
    folder: str | Path,
    event: Event | None = None,
    prior: Sample | None = None,
    variables: Sequence[str] = (),
    title: str = TITLE,
) -> Summary:
    """Write ``posterior.png``, ``.svg``, ``.pdf``, ``report.md`` and ``report.json`` and return the numbers.

    Args:
        samples: posteriors of one event; every other is compared with the first.
        folder: made where it does not exist.
        event: for true values and names of categories.
        prior: for the grey background and the ratio of standard deviations.
        variables: what to show; by default the variables of a τ decay, or else the first twelve that stand for one
            number in every posterior.
        title: a line on top of the figure and of the document.

    Raises:
        ValueError: no variable is shared by all posteriors, or a requested one is missing.
    """
    from etalumis.report import figure

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = choose_variables(samples, variables)
    truth, labels = (event.truth, event.labels) if event is not None else ({}, {})
    drawn = figure.draw(samples, chosen, prior, truth, labels, title)
    figure.save(drawn, folder)
    summary = summarise(samples, chosen, prior)
    write_atomically(folder / "report.md", as_markdown(title, grids(summary)).encode())
    write_atomically(folder / "report.json", as_json(summary).encode())
    return summary


def choose_variables(samples: Sequence[Sample], wanted: Sequence[str] = ()) -> list[str]:
    """The variables to report, in order."""
    if not samples:
        raise ValueError("a report needs posteriors: posteriors=[folder, …]")
    shared = [name for name in samples[0].values if all(name in s.values for s in samples)]
    missing = [name for name in wanted if name not in shared]
    if missing:
        raise ValueError(
            f"{', '.join(missing)}: not one number in every trace of every posterior; those that are: {shared}"
        )
    if not shared:
        raise ValueError(
            "the posteriors share no named draw or tag that is one number in every trace; "
            "name what you want to see in the simulator: sample(..., name=...) or tag(value, name=...)"
        )
    if wanted:
        return list(wanted)
    if set(TAU_VARIABLES) <= set(shared):
        return list(TAU_VARIABLES)
    return shared[:_MOST_PANELS]


def load_posteriors(folders: Sequence[str | Path], names: Sequence[str] = ()) -> dict[str, Posterior]:
    """Posteriors from their folders, called ``names``, or by their engine where that tells them apart."""
    posteriors = [Posterior.load(folder) for folder in folders]
    if names and len(names) != len(posteriors):
        raise ValueError(f"{len(names)} labels for {len(posteriors)} posteriors: give one each, or none")
    engines = [str(p.info.get("engine", Path(f).name)) for p, f in zip(posteriors, folders, strict=True)]
    for own in (names, engines, [Path(f).name for f in folders], [str(f) for f in folders]):
        if own and len(set(own)) == len(own):
            return dict(zip(own, posteriors, strict=True))
    raise ValueError(f"a posterior is given twice: {', '.join(map(str, folders))}")


def run(config: Mapping[str, Any]) -> Summary:
    """The command ``etalumis report``; its settings are explained in ``conf/report.yaml``."""
    posteriors = load_posteriors(config["posteriors"], config.get("labels") or ())
    samples = [Sample.of(posterior, label) for label, posterior in posteriors.items()]
    truth, prior = config.get("truth"), config.get("prior")
    summary = write_report(
        samples,
        config["output"],
        event=Event.load(truth) if truth else None,
        prior=Sample.of(Posterior.load(prior), "prior") if prior else None,
        variables=config.get("variables") or (),
        title=config.get("title") or TITLE,
    )
    show(summary)
    if config.get("diagnose"):
        diagnose(posteriors, config["output"])
    return summary


def diagnose(posteriors: Mapping[str, Posterior], folder: str | Path) -> None:
    """Write each posterior's diagnosis to ``diagnose_LABEL``, and print the verdicts."""
    for label, posterior in posteriors.items():
        place = Path(folder) / ("diagnose_" + re.sub(r"[^\w.-]+", "_", label))
        found = posterior.diagnose(place)
        console = Console()
        console.print(f"{label}: {'no fault found' if found.ok else 'problems'}, see {place / 'diagnosis.md'}")
        for problem in found.problems:
            console.print(f"  problem: {problem}", markup=False)


def show(summary: Summary, console: Console | None = None) -> None:
    """Print every table."""
    console = console or Console()
    for grid in grids(summary):
        console.print(grid.rich())
