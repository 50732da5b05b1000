"""Is an engine calibrated? Infer from events with known truth, and see where the truth falls.

If truth x* and observation y come from the joint distribution, then x* and draws from the exact posterior given y
are exchangeable, and so is every rank statistic of them. That is what all checks here use:

- simulation-based calibration (Talts et al. 2018): the rank of the true value among posterior draws;
- expected coverage: how often central intervals of a posterior hold the truth;
- TARP (Lemos et al. 2023): the rank of the truth's distance to a random point, over all variables together, which
  sees errors of dependence that no single variable shows.

Ranks are kept as numbers in (0, 1) that are uniform for a calibrated engine whatever the number of posterior draws:
(draws below + a uniform share of the ties and the truth) / (draws + 1). So discrete variables need no care, and an
event of small effective sample size takes few draws instead of being left out, which would hide the worst ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import FAILED, Prior, Simulator, Trace, run
from etalumis.inference.api import posteriors
from etalumis.inference.engine import Engine
from etalumis.inference.errors import InferenceError
from etalumis.inference.posterior import Posterior
from etalumis.inference.progress import Progress, progress_bar

Array = NDArray[np.float64]
TARP = "all variables (TARP)"
_BLOCK = 16  # events whose posteriors are held at a time
_ESS_PER_DRAW = 20.0  # resampled draws of a weighted posterior are independent only if they are far fewer than its ESS


@dataclass(frozen=True, eq=False)
class Calibration:
    """Where the truth of E events fell among the draws of their posteriors.

    Attributes:
        names: the variables, and :data:`TARP` last; K in all.
        ranks: among draws that respect the weights (all draws, of Markov chains), in (0, 1), shape (E, K).
        raw_ranks: among the proposal's draws without their weights: what the network alone is worth. None for
            Markov chains.
        draws: posterior draws that :attr:`ranks` are among, shape (E,).
        ess: effective sample size of each posterior, shape (E,).
    """

    names: tuple[str, ...]
    ranks: Array
    raw_ranks: Array | None
    draws: NDArray[np.int64]
    ess: Array

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
        return "\n".join(lines)

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
        names: named numbers to rank; by default all draws and tags that every event has once.
        seed: of everything.
        progress: as for :func:`etalumis.posterior`.

    Raises:
        InferenceError: there is nothing to rank.
    """
    keys = np.random.SeedSequence([seed & (1 << 64) - 1, 0x63616C]).generate_state(3, np.uint64).tolist()
    events = [trace for trace in run(model, Prior(), None, range(num_events), keys[0]) if trace.ended != FAILED]
    truth = _truth(events, names)
    generator = np.random.default_rng(keys[1])
    judge = _Judge(truth, generator)
    seeds = np.random.default_rng(keys[2])
    with progress_bar("calibration", len(events), "events", progress) as report:
        for first in range(0, len(events), _BLOCK):
            block = [observed_values(trace) for trace in events[first : first + _BLOCK]]
            found = posteriors(model, block, engine, num_traces, int(seeds.integers(1 << 62)), progress=False)
            for number, posterior in enumerate(found, first):
                judge.rank(number, posterior)
            report(len(block), "")
    return judge.verdict()


def observed_values(trace: Trace) -> dict[str, Any]:
    """What an execution observed, by name, as engines take it: a list for a name met several times."""
    met: dict[str, list[Any]] = {}
    for statement in trace.observes:
        if statement.name:
            met.setdefault(statement.name, []).append(statement.value)
    return {name: values[0] if len(values) == 1 else values for name, values in met.items()}


def named_numbers(trace: Trace) -> dict[str, float]:
    """The named draws and tags of an execution that it has once, and that are numbers."""
    pairs = [(name, value) for name, value in zip(trace.names, trace.values, strict=True) if name]
    pairs += [(tag.name, tag.value) for tag in trace.tags if tag.name]
    seen: dict[str, list[Any]] = {}
    for name, value in pairs:
        seen.setdefault(name, []).append(value)
    return {n: float(v[0]) for n, v in seen.items() if len(v) == 1 and np.ndim(v[0]) == 0 and _is_number(v[0])}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _truth(events: Sequence[Trace], names: Sequence[str] | None) -> dict[str, Array]:
    numbers = [named_numbers(trace) for trace in events]
    if not events or not all(trace.observes for trace in events):
        raise InferenceError("some events observe nothing: there is nothing to infer from")
    everywhere = [name for name in numbers[0] if all(name in found for found in numbers)]
    missing = sorted(set(names or ()) - set(everywhere))
    if missing or not everywhere:
        raise InferenceError(
            f"{', '.join(map(repr, missing)) or 'nothing'} is a number that every event has exactly once; those that "
            f"are: {', '.join(map(repr, everywhere)) or 'none'}"
        )
    return {name: np.array([found[name] for found in numbers]) for name in (names or everywhere)}


class _Judge:
    """Ranks the truth of events among the draws of their posteriors."""

    def __init__(self, truth: Mapping[str, Array], generator: np.random.Generator) -> None:
        self._names = tuple(truth)
        self._truth = np.stack(list(truth.values()), axis=1)
        spread = self._truth.std(axis=0)
        self._scale = np.where(spread > 0.0, spread, 1.0)
        self._generator = generator
        events, variables = self._truth.shape
        self._ranks = np.empty((events, variables + 1))
        self._raw = np.empty((events, variables + 1))
        self._draws = np.empty(events, dtype=np.int64)
        self._ess = np.empty(events)
        self._markov = False

    def rank(self, event: int, posterior: Posterior) -> None:
        self._markov = posterior.markov
        self._ess[event] = posterior.ess
        count = max(1, min(int(posterior.ess / _ESS_PER_DRAW), len(posterior)))
        self._draws[event] = count
        chosen = posterior.resample(count, seed=int(self._generator.integers(1 << 62)))
        # TARP's random point: the truth of another event, that is, a draw from the prior.
        other = (event + int(self._generator.integers(1, max(len(self._truth), 2)))) % len(self._truth)
        self._ranks[event] = self._among(event, other, chosen)
        if not posterior.markov:
            self._raw[event] = self._among(event, other, posterior)

    def _among(self, event: int, other: int, posterior: Posterior) -> Array:
        values = np.stack([posterior.values(name).astype(np.float64) for name in self._names], axis=1)
        truth, point = self._truth[event], self._truth[other]
        far = np.square((values - point) / self._scale).sum(axis=1)
        true_far = np.square((truth - point) / self._scale).sum()
        values = np.concatenate([values, far[:, None]], axis=1)
        truth = np.append(truth, true_far)
        below = (values < truth).sum(axis=0)
        ties = (values == truth).sum(axis=0)
        ranks: Array = (below + self._generator.random(len(truth)) * (ties + 1.0)) / (len(values) + 1.0)
        return ranks

    def verdict(self) -> Calibration:
        raw = None if self._markov else self._raw
        return Calibration((*self._names, TARP), self._ranks, raw, self._draws, self._ess)
