"""Inference compilation in lock-step batches: against one execution after the other, and against pyprob 1.5.0.

    python -m benchmarks.ic_inference --json [--quick]

``lockstep64_vs_one`` is the time outside the simulator: that of a run less that of as many executions of the same
simulator on the same observation with the prior's values (importance sampling), per trace. Model: τ decay with the
sizes of ``conf/network/tau.yaml``; then Marsaglia's with an LSTM of 512. Speed does not depend on the weights: ours
are untrained, pyprob's trained on a few hundred traces, which is how its layers come to be. One thread.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

import etalumis as et
from benchmarks.common import Measure, Result, Settings, compare, main, rate
from benchmarks.pyprob_peer import PeerUnavailableError, PyprobPeer
from etalumis.conf.compose import compose, plain
from etalumis.networks import InferenceNetwork
from etalumis.simulators.classics import marsaglia
from etalumis.simulators.detector import Detector
from etalumis.simulators.tau import Tau

BATCH = 64
KNOWN = 2000  # prior traces whose addresses get rows
TRACES, QUICK_TRACES = 640, 192  # in lock-step, of one repeat; a tenth of it one by one
HIDDEN, PEER_TRACES = 512, 300
OBSERVED = {"obs0": 8.0, "obs1": 9.0}


@cache
def tau() -> et.Model:
    return et.Model(Tau(Detector()), name="tau")


@cache
def tau_network() -> InferenceNetwork:
    """Untrained, of the preset's sizes."""
    config: dict[str, Any] = plain(compose("train", ["network=tau", "data.train=none", "output=none"]))
    known = et.prior(tau(), num_traces=KNOWN, seed=1).traces
    return InferenceNetwork.for_batch(config["network"], known, simulator="tau").eval()


@cache
def event() -> dict[str, Any]:
    """An observation of the detector."""
    (trace,) = et.execution.run(tau(), indices=[7], seed=2)
    return {observed.name: observed.value for observed in trace.observes}


def run(batch_size: int, num_traces: int) -> None:
    engine = et.IC(tau_network(), batch_size=batch_size)
    et.posterior(tau(), event(), engine, num_traces=num_traces, seed=3, progress=False)


def simulate(num_traces: int) -> None:
    """The simulator's own time: the same loop, the prior's values."""
    for _ in et.execution.run(tau(), None, event(), range(num_traces), 3, draw_observations=False):
        pass


def per_trace(batch_size: int, num_traces: int, outside: bool) -> Measure:
    """Milliseconds per trace, with or without the simulator's."""

    def measure() -> float:
        start = time.perf_counter()
        run(batch_size, num_traces)
        middle = time.perf_counter()
        if outside:
            simulate(num_traces)
            return 1e3 * (2 * middle - start - time.perf_counter()) / num_traces
        return 1e3 * (middle - start) / num_traces

    return measure


def lockstep(settings: Settings) -> Iterator[Result]:
    """``lockstep64_vs_one`` and ``lockstep64_vs_one_end_to_end``."""
    many = QUICK_TRACES if settings.quick else TRACES
    for name, outside, target in (("lockstep64_vs_one", True, 10.0), ("lockstep64_vs_one_end_to_end", False, None)):
        yield compare(
            name,
            per_trace(BATCH, many, outside),
            per_trace(1, many // 10, outside),
            unit="ms/trace",
            target=target,
            settings=settings,
            smaller_is_better=True,
        )


@cache
def marsaglia_network() -> InferenceNetwork:
    known = et.prior(et.Model(marsaglia), num_traces=PEER_TRACES, seed=1).traces
    config = {"core": {"kind": "lstm", "hidden": HIDDEN}, "max_instances": None}
    return InferenceNetwork.for_batch(config, known, simulator="marsaglia").eval()


def ours_marsaglia(num_traces: int) -> None:
    engine = et.IC(marsaglia_network(), batch_size=BATCH)
    et.posterior(et.Model(marsaglia), OBSERVED, engine, num_traces=num_traces, seed=3, progress=False)


def beside_pyprob(settings: Settings) -> Iterator[Result]:
    """``lockstep_vs_pyprob``; alone, with a note, where pyprob cannot be had."""
    count = 1000 if settings.quick else 4000
    with contextlib.ExitStack() as stack:
        theirs: Measure | None = None
        note = "Marsaglia, LSTM 512"
        try:
            peer = stack.enter_context(PyprobPeer())
        except PeerUnavailableError as error:
            note = str(error)
        else:
            peer.ask("train_marsaglia", num_traces=PEER_TRACES, lstm_dim=HIDDEN)
            theirs = lambda: float(peer.ask("inference_compilation", num_traces=count // 50)["rate"])  # noqa: E731
        ours = rate(ours_marsaglia, count)
        yield compare(
            "lockstep_vs_pyprob", ours, theirs, unit="traces/s", target=50.0, settings=settings, note=note, rounds=2
        )


def results(settings: Settings) -> Iterator[Result]:
    torch.set_num_threads(1)
    logging.getLogger("etalumis").setLevel(logging.ERROR)  # untrained: that its weights are bad is no news
    yield from lockstep(settings)
    yield from beside_pyprob(settings)


if __name__ == "__main__":
    sys.exit(main("ic_inference", results))
