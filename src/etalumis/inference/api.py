"""The two questions a user asks: what does the model say, and what does it say given this observation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etalumis.execution import Observations, Prior, Simulator
from etalumis.inference.engine import DEFAULT_TRACES, Engine, EventsEngine, left_out, warn
from etalumis.inference.executions import Plan, execute
from etalumis.inference.importance import ImportanceSampling
from etalumis.inference.posterior import Posterior
from etalumis.inference.progress import Progress, progress_bar
from etalumis.inference.workers import Workers


def prior(
    model: Simulator,
    num_traces: int = DEFAULT_TRACES,
    seed: int = 0,
    workers: Workers = 1,
    progress: Progress = None,
) -> Posterior:
    """Traces from the prior, equally weighted; observes without a value draw theirs (in ``traces.observes``).

    Args:
        model: the simulator.
        num_traces: how many.
        seed: of the random numbers: equal seeds give equal traces, whatever the number of workers.
        workers: processes to execute in, or "mpi".
        progress: show a bar; None shows it on a terminal; or a function to tell, see :data:`.progress.Progress`.
    """
    started = time.perf_counter()
    plan = Plan(model, Prior(), Observations(), seed, keep_observes=True, draw_observations=True)
    with progress_bar("prior", num_traces, "traces", progress) as report:
        traces = execute(plan, num_traces, workers, report)
    info = {"engine": "prior", "model": model.name, "seed": seed, "executions": num_traces}
    info |= {"seconds": time.perf_counter() - started, "warnings": left_out(num_traces, num_traces - len(traces))}
    drawn = Posterior(traces, np.zeros(len(traces)), info=info)
    warn(drawn)
    return drawn


def posterior(
    model: Simulator,
    observe: Mapping[str, Any],
    engine: Engine | None = None,
    num_traces: int | None = None,
    seed: int = 0,
    override: bool = False,
    progress: Progress = None,
) -> Posterior:
    """Infer a model's draws from observed values.

    Args:
        model: the simulator.
        observe: values by the names of ``observe`` or ``sample`` statements; a list for a name met several times.
        engine: ``ImportanceSampling()`` (the default), ``LMH()``, ``RMH()`` or ``IC(checkpoint)``.
        num_traces: traces to keep, over all chains; by default 1000, or all of a dataset.
        seed: of the random numbers: equal seeds give equal posteriors, whatever the number of workers.
        override: let ``observe`` replace values that the simulator supplies itself.
        progress: show a bar; None shows it on a terminal; or a function to tell, see :data:`.progress.Progress`.

    Raises:
        ObservationError: an observation name that no execution used, or a value that does not fit.
        DensityError: a log density is not a number, with address and parameters.
    """
    engine = ImportanceSampling() if engine is None else engine
    return engine.run(model, Observations(observe, override), num_traces, seed, progress)


def posteriors(
    model: Simulator,
    events: Sequence[Mapping[str, Any]],
    engine: Engine | None = None,
    num_traces: int | None = None,
    seed: int = 0,
    override: bool = False,
    progress: Progress = None,
) -> list[Posterior]:
    """Infer a model's draws from each of many observations; the arguments are those of :func:`posterior`.

    Inference compilation takes all of them in one run: its executions wait for the network together, whichever
    observation they belong to. Other engines take one after the other, with seeds of their own.
    """
    engine = ImportanceSampling() if engine is None else engine
    observations = [Observations(observe, override) for observe in events]
    if isinstance(engine, EventsEngine):
        return engine.run_events(model, observations, num_traces, seed, progress)
    seeds = np.random.SeedSequence(seed & (1 << 64) - 1).generate_state(len(events), np.uint64).tolist()
    return [engine.run(model, o, num_traces, own, progress) for o, own in zip(observations, seeds, strict=True)]
