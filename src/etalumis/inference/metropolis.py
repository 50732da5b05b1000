"""Metropolis–Hastings over traces: LMH and RMH.

LMH redraws one site from its prior (Wingate, Stuhlmüller and Goodman, AISTATS 2011); RMH walks at random on the
site's support, with steps of a size that adapts during burn-in (Le, PhD thesis, Oxford 2015), and now and then
redraws from the prior too. They differ in the kernel only. The acceptance ratio is in :mod:`.acceptance`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import BY_CODE
from etalumis.execution import Observations, Simulator, TraceBatch
from etalumis.execution.model import as_observations
from etalumis.inference.acceptance import Move, log_acceptance_ratio
from etalumis.inference.block_moves import Dependants, Suffix
from etalumis.inference.chain import Chain, Recorder
from etalumis.inference.chain_files import ChainFolder, FileRecorder, identity
from etalumis.inference.engine import DEFAULT_TRACES, left_out, warn
from etalumis.inference.executions import join
from etalumis.inference.kernels import Mixture, PriorKernel, RandomWalk
from etalumis.inference.move_advice import branch_advice, idle_advice
from etalumis.inference.moves import Transition
from etalumis.inference.posterior import Posterior
from etalumis.inference.progress import Progress, progress_bar
from etalumis.inference.single_site import SingleSite
from etalumis.inference.workers import Report, Workers, run_tasks

_REPORT_SECONDS = 0.2  # between two reports of progress
_ENOUGH_MOVES = 20  # proposals after which a variable that never moved is worth a warning


class ProposedMoves(Protocol):
    """Moves by a trained network, and the share of steps that they get."""

    @property
    def share(self) -> float: ...

    @property
    def file(self) -> Path | None:
        """That the network was loaded from, if any."""
        ...

    def transition(self, model: Simulator) -> Transition:
        """The moves of one chain."""
        ...


@dataclass(frozen=True)
class LMH:
    """Single-site Metropolis–Hastings with the prior as kernel.

    Args:
        chains: how many, each from a start of its own.
        burn_in: steps of each chain before states are kept.
        thinning: keep every so many-th state.
        starts: draws from the prior of which the likeliest begins a chain.
        branch_share: make this share of the moves at named discrete draws, so that chains change modes (decay
            channels, say) more often; 0 treats all sites alike.
        suffix_share: of the moves, this share redraws a site and everything after it from the prior.
        dependants_share: of the moves, this share redraws a discrete site and what depends on it from the prior.
        proposals: further moves by a trained network, ``IC(checkpoint).as_kernel()``.
        temper: over this share of the burn-in the likelihood's power rises from 0 to 1.
        folder: write kept states and the chains there every half a minute, so that they need no memory and an
            interrupted run goes on; with more ``num_traces`` a finished one does too. Settings, data, simulator and
            network must be those that it began with.
        workers: processes to run chains in, or "mpi": the ranks of this job (:mod:`.ranks`); results do not depend on
            it.
        keep_observes: keep the parameters of the likelihoods with the traces (for posterior predictive checks).
    """

    chains: int = 4
    burn_in: int = 1000
    thinning: int = 1
    starts: int = 200
    branch_share: float = 0.0
    suffix_share: float = 0.0
    dependants_share: float = 0.0
    proposals: ProposedMoves | None = None
    temper: float = 0.0
    folder: str | Path | None = None
    workers: Workers = 1
    keep_observes: bool = False

    def __post_init__(self) -> None:
        if self.chains < 1 or self.burn_in < 0 or self.thinning < 1 or self.starts < 1:
            raise ValueError(f"chains, thinning and starts must be at least 1, burn_in at least 0; got {self}")
        if not 0.0 <= self.branch_share < 1.0:
            raise ValueError(f"branch_share is a share of the moves below 1; got {self}")
        others = self.suffix_share + self.dependants_share + (self.proposals.share if self.proposals else 0.0)
        if min(self.suffix_share, self.dependants_share) < 0.0 or others > 1.0 or not 0.0 <= self.temper <= 1.0:
            raise ValueError(f"shares of moves are at least 0 and at most 1 together, temper is a share; got {self}")

    def kernel(self) -> Mixture:
        """A chain's kernel."""
        return Mixture([PriorKernel()], [1.0])

    def log_acceptance(self, move: Move) -> float:
        """Log of the acceptance ratio of a single-site move."""
        return log_acceptance_ratio(move)

    def transitions(self, model: Simulator) -> list[tuple[float, Transition]]:
        """The kinds of moves of one chain, with their shares."""
        kinds: list[tuple[float, Transition]] = [(self.suffix_share, Suffix()), (self.dependants_share, Dependants())]
        if self.proposals is not None:
            kinds.append((self.proposals.share, self.proposals.transition(model)))
        rest = 1.0 - sum(share for share, _ in kinds)
        single = SingleSite(self.kernel(), self.log_acceptance)
        return [(share, kind) for share, kind in [(rest, single), *kinds] if share > 0.0]

    def run(
        self,
        model: Simulator,
        observe: Mapping[str, Any] | Observations | None,
        num_traces: int | None = None,
        seed: int = 0,
        progress: Progress = None,
    ) -> Posterior:
        """Run all chains.

        Args:
            model: the simulator.
            observe: observed values by name.
            num_traces: states kept after burn-in and thinning, over all chains (1000 where None).
            seed: of the random numbers.
            progress: show a bar; None shows it on a terminal; or a function to tell, see :data:`.progress.Progress`.

        Raises:
            ObservationError: an observation name that no execution used.
            InferenceError: no start of finite density was found.
        """
        num_traces = DEFAULT_TRACES if num_traces is None else num_traces
        if num_traces < self.chains:
            raise ValueError(f"{self.chains} chains can't share {num_traces} traces; ask for more, or fewer chains")
        observations = as_observations(observe)
        shares = [num_traces // self.chains + (c < num_traces % self.chains) for c in range(self.chains)]
        total = self.chains * self.burn_in + self.thinning * num_traces
        started = time.perf_counter()
        with progress_bar(type(self).__name__, total, "steps", progress) as report:
            common = (self, model, observations, seed)
            outcomes = run_tasks(_run_chain, common, list(enumerate(shares)), self.workers, report)
        for outcome in outcomes:
            observations.used |= outcome.used
        observations.check_used(set().union(*(outcome.names for outcome in outcomes)))
        posterior = _assemble(model, outcomes)
        posterior.info |= {
            "engine": type(self).__name__,
            "settings": _plain_settings(self),
            "model": model.name,
            "seed": seed,
            "observed": sorted(observations.values),
            "seconds": time.perf_counter() - started,
            "warnings": [
                *left_out(posterior.info["executions"], posterior.info["failed"]),
                *idle_advice(posterior.info["idle"], posterior.info["moves"]),
                *(branch_advice(posterior.traces) if self.branch_share else ()),
                *_stuck_warning([outcome.stuck for outcome in outcomes]),
            ],
        }
        warn(posterior)
        return posterior


@dataclass(frozen=True)
class RMH(LMH):
    """Single-site Metropolis–Hastings with random walks of adapting size.

    Args:
        prior_fraction: share of moves that redraw from the prior instead, which lets chains jump.
        initial_step: first step size, in standard deviations of the site's prior.
        target_acceptance: what step sizes adapt to during burn-in.
    """

    prior_fraction: float = 0.1
    initial_step: float = 0.5
    target_acceptance: float = 0.44

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.prior_fraction <= 1.0 or not 0.0 < self.target_acceptance < 1.0 or self.initial_step <= 0:
            raise ValueError(f"prior_fraction and target_acceptance are shares, initial_step is positive; got {self}")

    def kernel(self) -> Mixture:
        walk = RandomWalk(self.initial_step, self.target_acceptance)
        return Mixture([PriorKernel(), walk], [self.prior_fraction, 1.0 - self.prior_fraction])


def _plain_settings(engine: LMH) -> dict[str, Any]:
    """Settings that JSON can say."""
    settings = {field.name: getattr(engine, field.name) for field in fields(engine)}
    settings["folder"] = None if engine.folder is None else str(engine.folder)
    return settings | {"proposals": None if engine.proposals is None else str(engine.proposals)}


class _Outcome(NamedTuple):
    """What one chain brings home."""

    traces: TraceBatch
    rows: NDArray[np.int64]
    tally: dict[int, list[int]]
    idle: Counter[str]
    reuse: list[list[int]]
    executions: int
    failed: int
    used: Counter[str]
    names: set[str]
    stuck: list[str]


def _run_chain(common: tuple[LMH, Simulator, Observations, int], task: tuple[int, int], report: Report) -> _Outcome:
    engine, model, observations, seed = common
    number, count = task
    temper = int(engine.temper * engine.burn_in)
    chain = Chain(model, observations, engine.transitions(model), seed, number, engine.branch_share, temper)
    recorder = _recorder(engine, chain, observations, seed, number)
    done = recorder.begin()
    if done is None:
        chain.start(engine.starts)
        done = 0
        recorder.save(done, force=True)
    total = engine.burn_in + count * engine.thinning
    report(min(done, total), "")
    accepted, step, reported, due = 0, done, done, time.monotonic()
    for step in range(done + 1, total + 1):
        if step == engine.burn_in + 1:
            chain.freeze()
        accepted += chain.step()
        after = step - engine.burn_in
        if after > 0 and after % engine.thinning == 0:
            recorder.keep()
        recorder.save(step)
        if (now := time.monotonic()) >= due or step == total:
            report(step - reported, f"acceptance {accepted / (step - done):.2f}")
            reported, due = step, now + _REPORT_SECONDS
    recorder.save(step, force=True)
    traces, rows = recorder.finish(count)
    stuck = stuck_discrete(traces, chain.tally)
    return _Outcome(
        traces,
        rows,
        chain.tally,
        chain.idle,
        chain.reuse.plain(),
        chain.executions,
        chain.failed,
        observations.used,
        chain.names,
        stuck,
    )


def _recorder(engine: LMH, chain: Chain, observations: Observations, seed: int, number: int) -> Recorder | FileRecorder:
    if engine.folder is None:
        return Recorder(chain, engine.keep_observes)
    network = engine.proposals.file if engine.proposals else None
    whose = identity(_plain_settings(engine), network, chain.model, observations, seed, number)
    folder = ChainFolder(Path(engine.folder) / f"chain-{number:03d}", whose)
    return FileRecorder(chain, folder, engine.keep_observes)


def _assemble(model: Simulator, outcomes: Sequence[_Outcome]) -> Posterior:
    """One posterior of all chains, under the model's own address book."""
    traces = join(model, [outcome.traces for outcome in outcomes])
    tally: dict[int, list[int]] = {}
    reuse: dict[int, list[int]] = {}
    for outcome in outcomes:
        theirs = outcome.traces.addresses
        tallied = [(tally, address, counts) for address, counts in outcome.tally.items()]
        tallied += [(reuse, address, counts) for address, *counts in outcome.reuse]
        for sums, address, counts in tallied:
            ours = address if theirs is traces.addresses else traces.addresses.find(theirs[address])
            assert ours is not None
            known = sums.setdefault(ours, [0, 0])
            known[0] += counts[0]
            known[1] += counts[1]
    starts = np.cumsum([0] + [len(outcome.traces) for outcome in outcomes])
    rows = np.concatenate([outcome.rows + start for outcome, start in zip(outcomes, starts, strict=False)])
    chains = np.repeat(np.arange(len(outcomes)), [len(outcome.rows) for outcome in outcomes])
    moves, accepted_moves = np.sum([[0, 0], *tally.values()], axis=0).tolist()
    info = {
        "executions": sum(outcome.executions for outcome in outcomes),
        "failed": sum(outcome.failed for outcome in outcomes),
        "acceptance": accepted_moves / max(moves, 1),
        "moves": [[address, *counts] for address, counts in sorted(tally.items())],
        "idle": dict(sum((outcome.idle for outcome in outcomes), Counter[str]())),
        "reuse": [[address, *counts] for address, counts in sorted(reuse.items())],
    }
    return Posterior(traces, np.zeros(len(rows)), rows, chains, markov=True, info=info)


def stuck_discrete(traces: TraceBatch, tally: Mapping[int, Sequence[int]]) -> list[str]:
    """Discrete variables that kept one value through a whole chain while others moved.

    Args:
        traces: a chain's distinct states.
        tally: how often each address was proposed to move, and did.

    Returns:
        their names, or addresses where they have none.
    """
    discrete = np.zeros(max(BY_CODE) + 1, dtype=np.bool_)
    discrete[[code for code, family in BY_CODE.items() if family.discrete]] = True
    scalar = np.diff(traces.value_offsets) == 1
    draws = np.flatnonzero(discrete[traces.distributions.code[traces.distribution]] & scalar & ~traces.conditioned)
    address, numbers = traces.address[draws], traces.value[traces.value_offsets[:-1][draws]]
    found = []
    for identifier, (proposed, _) in tally.items():
        here = address == identifier
        if proposed >= _ENOUGH_MOVES and here.sum() == len(traces) > 1 and np.ptp(numbers[here]) == 0.0:
            name = traces.names[traces.name[draws[here][0]]]
            found.append(name or str(traces.addresses[identifier]))
    return found


def _stuck_warning(stuck: Sequence[Sequence[str]]) -> list[str]:
    chains: dict[str, list[str]] = {}
    for number, names in enumerate(stuck):
        for name in names:
            chains.setdefault(name, []).append(str(number))
    if not chains:
        return []
    shown = "; ".join(f"{name!r} in chains {', '.join(c)}" for name, c in list(chains.items())[:5])
    more = f"; and {len(chains) - 5} more" if len(chains) > 5 else ""
    # R̂ can't see it: momenta may mix well while every chain sits in a decay channel of its own.
    return [
        f"discrete variables never moved: {shown}{more}. Either only one value fits the observation, or single-site "
        "moves can't switch them: compare chains from other seeds, or check against importance sampling or IC"
    ]
