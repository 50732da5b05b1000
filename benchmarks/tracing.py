"""Speed of running a model in-process beside pyprob 1.5.0, and the cost of one ``sample`` statement.

Model: the Gaussian with unknown mean whose prior is drawn by Marsaglia's polar method (a rejection loop, 2.5
draws on average). Both sides run the same program with the same data inside, keep every trace, use one core.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np

import etalumis as et
from benchmarks.common import Measure, Result, Settings, compare, main, rate, single
from benchmarks.pyprob_peer import PeerUnavailableError, PyprobPeer
from etalumis.distributions import Normal, Uniform

TRACES = 4000  # of ours in one repeat; an eighth of it of theirs, to take about as long
DRAWS = 1000  # sample statements in one execution of the overhead measurement


def marsaglia() -> float:
    """The program that ``pyprob_driver.marsaglia`` has too, statement for statement."""
    s = 1.0
    while s >= 1.0:
        x = et.sample(Uniform(-1.0, 1.0))
        y = et.sample(Uniform(-1.0, 1.0))
        s = x * x + y * y
    mu = 1.0 + 5.0**0.5 * (x * math.sqrt(-2.0 * math.log(s) / s))
    likelihood = Normal(mu, 2.0**0.5)
    et.observe(likelihood, 8.0, name="obs0")
    et.observe(likelihood, 9.0, name="obs1")
    return mu


def ours_prior(num_traces: int) -> et.Posterior:
    return et.prior(et.Model(marsaglia), num_traces=num_traces, seed=1)


def ours_rmh(num_traces: int) -> et.Posterior:
    engine = et.RMH(chains=1, burn_in=0)
    return et.posterior(et.Model(marsaglia), observe={}, engine=engine, num_traces=num_traces, seed=1)


def sample_overhead(executions: int) -> Measure:
    """Microseconds of one ``et.sample(Normal(0.0, 1.0))`` beyond ``Generator.normal``'s own draw."""
    generator = np.random.Generator(np.random.Philox(1))

    def draws() -> None:
        for _ in range(DRAWS):
            et.sample(Normal(0.0, 1.0))

    def numpy_draws() -> None:
        for _ in range(DRAWS):
            generator.normal(0.0, 1.0)

    model = et.Model(draws)

    def measure() -> float:
        start = time.perf_counter()
        for trace in et.execution.run(model, et.execution.Prior(), {}, range(executions), 1):
            assert len(trace.values) == DRAWS
        middle = time.perf_counter()
        for _ in range(executions):
            numpy_draws()
        return 1e6 * (2 * middle - start - time.perf_counter()) / (executions * DRAWS)

    return measure


def beside_pyprob(settings: Settings, jobs: Sequence[str] = ("prior", "rmh"), target: float = 10.0) -> Iterator[Result]:
    """``prior_vs_pyprob`` and ``rmh_vs_pyprob``; alone, with a note, where pyprob cannot be had."""
    ours = {"prior": rate(ours_prior, TRACES), "rmh": rate(ours_rmh, TRACES)}
    with contextlib.ExitStack() as stack:
        theirs: dict[str, Measure | None] = {"prior": None, "rmh": None}
        note = ""
        try:
            peer = stack.enter_context(PyprobPeer())
        except PeerUnavailableError as error:
            note = str(error)
        else:
            theirs = {
                "prior": lambda: float(peer.ask("prior", num_traces=TRACES // 8)["rate"]),
                "rmh": lambda: float(peer.ask("rmh", num_traces=TRACES // 8)["rate"]),
            }
        for job in jobs:
            name = f"{job}_vs_pyprob"
            yield compare(
                name, ours[job], theirs[job], unit="traces/s", target=target, settings=settings, note=note, rounds=3
            )


def results(settings: Settings) -> Iterator[Result]:
    yield from beside_pyprob(settings)
    overhead = sample_overhead(executions=10)
    yield single("sample_overhead_us", overhead, unit="us", target=6.0, settings=settings, rounds=3)


if __name__ == "__main__":
    sys.exit(main("tracing", results))
