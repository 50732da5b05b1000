"""Is an engine calibrated? Infer from events with known truth, and see where the truth falls.

If truth x* and observation y come from the joint distribution, then x* and draws from the exact posterior given y
are exchangeable, and so is every rank statistic of them. That is what all checks here use:

- simulation-based calibration (Talts et al. 2018): the rank of the true value among posterior draws;
- expected coverage: how often central intervals of a posterior hold the truth;
- TARP (Lemos et al. 2023): the rank of the truth's distance to a random point, over all variables together, which
  sees errors of dependence that no single variable shows.

Ranks are kept as numbers in (0, 1) that are uniform for a calibrated engine whatever the number of posterior draws:
(draws below + a uniform share of the ties and the truth) / (draws + 1). So discrete variables need no care, and an
event of small effective sample size takes few draws instead of being left out, which would hide the worst ones; one
that an engine can't infer from takes none, has a uniform rank and is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import ObservationError, Prior, Simulator, run
from etalumis.inference.api import posteriors
from etalumis.inference.calibration_events import Events
from etalumis.inference.calibration_ranks import Ranks
from etalumis.inference.engine import Engine, EventsEngine
from etalumis.inference.errors import InferenceError
from etalumis.inference.posterior import Posterior
from etalumis.inference.progress import Progress, progress_bar

Array = NDArray[np.float64]
TARP = "all variables (TARP)"
_BLOCK = 16  # events that an engine which takes many together is given at a time


@dataclass(frozen=True, eq=False)
class Calibration:
    """Where the truth of E events fell among the draws of their posteriors.

    Attributes:
        names: the variables, and :data:`TARP` last; K in all.
        ranks: among draws that respect the weights (all draws, of Markov chains), in (0, 1), shape (E, K).
        raw_ranks: among the proposal's draws without their weights: what the network alone is worth. None for
            Markov chains.
        draws: posterior draws that :attr:`ranks` are among, shape (E,); 0 where an event gave no information (the
            engine stopped, or every weight was zero): its ranks are uniform.
        ess: effective sample size of each posterior, shape (E,); 0 where it gave no information.
        notes: what was left out.
    """

    names: tuple[str, ...]
    ranks: Array
    raw_ranks: Array | None
    draws: NDArray[np.int64]
    ess: Array
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ranks)

    def p_values(self, raw: bool = False) -> dict[str, float]:
        """For each name the probability of ranks as uneven as these under calibration.

        Kolmogorov and Smirnov's test of the ranks, which sees a shift, and of their distance from the middle, which
        sees posteriors too narrow or too wide; the smaller of both, times two.
        """
        from scipy.stats import kstest

        ranks = self._ranks(raw)
        found = {}
        for name, column in zip(self.names, ranks.T, strict=True):
            smaller = min(kstest(column, "uniform").pvalue, kstest(np.abs(2.0 * column - 1.0), "uniform").pvalue)
            found[name] = min(2.0 * float(smaller), 1.0)
        return found

    def miscalibrated(self, level: float = 0.01, raw: bool = False) -> list[str]:
        """Names whose ranks are not uniform, worst first.

        Args:
            level: probability of naming any variable of a calibrated engine (Holm's correction).
            raw: judge the proposals without their weights.
        """
        ordered = sorted(self.p_values(raw).items(), key=lambda item: item[1])
        found = []
        for place, (name, p) in enumerate(ordered):
            if p * (len(ordered) - place) > level:
                break
            found.append(name)
        return found

    def coverage(self, levels: Sequence[float], raw: bool = False) -> Array:
        """How often the central interval of each level holds the truth, shape (K, levels); ideally the level itself."""
        distance = np.abs(2.0 * self._ranks(raw) - 1.0)
        return np.stack([(distance <= level).mean(axis=0) for level in levels], axis=1)

    def _ranks(self, raw: bool) -> Array:
        if not raw:
            return self.ranks
        if self.raw_ranks is None:
            raise InferenceError("Markov chains have no proposal draws beside their states; leave raw out")
        return self.raw_ranks

    def __repr__(self) -> str:
        raw = self.raw_ranks is not None
        weighted, alone = self.p_values(), self.p_values(raw=True) if raw else {}
        covered = self.coverage([0.5, 0.9])
        width = max(map(len, self.names))
        lines = [
            f"Calibration over {len(self)} events: ESS median {np.median(self.ess):.0f}, least {self.ess.min():.1f}",
            f"  {'':<{width}}  p-value{'  p (proposal alone)' if raw else ''}  in 50 %  in 90 %",
        ]
        for name, (half, most) in zip(self.names, covered, strict=True):
            proposal = f"  {alone[name]:18.3g}" if raw else ""
            lines.append(f"  {name:<{width}}  {weighted[name]:7.3g}{proposal}  {half:7.1%}  {most:7.1%}")
        wrong = self.miscalibrated()
        lines.append(f"  miscalibrated: {', '.join(wrong)}" if wrong else "  no sign of miscalibration")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def plot(self, path: Any = None, raw: bool = False) -> Any:
        """Cumulative ranks less the diagonal, with the band of a calibrated engine. See :mod:`.figures.calibration`."""
        from etalumis.inference.figures.calibration import calibration_figure

        return calibration_figure(self, raw, path)

    def save(self, folder: str | Path, title: str = "Calibration") -> None:
        """Write figures (PNG), numbers (JSON) and a document with both (Markdown)."""
        from etalumis.inference.calibration_text import save

        save(self, Path(folder), title)


def calibrate(
    model: Simulator,
    engine: Engine,
    num_events: int = 200,
    num_traces: int | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> Calibration:
    """Infer from events of the model's own prior, and rank their truth.

    Args:
        model: the simulator; it must draw what it observes.
        engine: what is judged.
        num_events: how many; errors of a posterior show from about 100 on.
        num_traces: of each posterior.
        names: named numbers to rank; by default all draws and tags that every event has once (others are noted).
        seed: of everything.
        progress: as for :func:`etalumis.posterior`.

    Raises:
        InferenceError: there is nothing to rank; the model has an observe without a name, or a likelihood beside what
            it observes, so that its prior does not draw the truth; or no event at all could be inferred from.
    """
    keys = np.random.SeedSequence([seed & (1 << 64) - 1, 0x63616C]).generate_state(3, np.uint64).tolist()
    events = Events.of([*run(model, Prior(), None, range(num_events), keys[0])], names)
    ranks = Ranks(events.truth, np.random.default_rng(keys[1]))
    seeds = np.random.default_rng(keys[2])
    size = _BLOCK if isinstance(engine, EventsEngine) else 1
    with progress_bar("calibration", len(events), "events", progress) as report:
        for first in range(0, len(events), size):
            block = events.observed[first : first + size]
            found = _infer(model, block, engine, num_traces, int(seeds.integers(1 << 62)))
            for number, posterior in enumerate(found, first):
                ranks.tell(number, posterior)
            report(len(block), "")
    lost = int((ranks.draws == 0).sum())
    if lost == len(events):
        raise InferenceError(f"none of {lost} events gave any information; of the first: {ranks.lost}")
    notes = events.notes
    if lost:
        told = f"{lost} of {len(events)} events gave no information, and got uniform ranks; the first: {ranks.lost}"
        notes = (told, *notes)
    raw = None if ranks.markov else ranks.raw
    return Calibration((*events.truth, TARP), ranks.weighted, raw, ranks.draws, ranks.ess, notes)


def _infer(
    model: Simulator, events: Sequence[dict[str, Any]], engine: Engine, num_traces: int | None, seed: int
) -> list[Posterior | Exception]:
    """The posterior of each event, or why there is none: one event that an engine can't do is no reason to stop.

    It may find nowhere to start, or never come where the event was observed.
    """
    try:
        return [*posteriors(model, events, engine, num_traces, seed, progress=False)]
    except (InferenceError, ObservationError) as error:
        if len(events) == 1:
            return [error]
    seeds = np.random.SeedSequence(seed).generate_state(len(events), np.uint64).tolist()
    return [
        posterior
        for event, own in zip(events, seeds, strict=True)
        for posterior in _infer(model, [event], engine, num_traces, own)
    ]
