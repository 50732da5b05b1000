"""What known addresses cost that a minibatch does not have: time and memory of a training step.

    python -m benchmarks.addresses --json [--quick]

The same mixed minibatch of 544 addresses, by a network that knows only these and by one that knows 20,000 (with
``per_address`` heads: 5,000), among which they are spread. One thread; packing, optimiser and its state included.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.common import Measure, Result, Settings, compare, significant
from benchmarks.workload import DRAWS, KINDS, MINIBATCH, MIXED, Training, traces
from etalumis.execution import TraceBatch
from etalumis.networks.memory import keep_freed_memory
from etalumis.networks.settings import DEFAULTS

MANY, FEWER = 20_000, 5_000
MET = "the network that knows more has met all of its addresses: every row has optimiser state"


def results(settings: Settings) -> Iterator[Result]:
    torch.set_num_threads(1)
    keep_freed_memory()  # as `etalumis train` does
    head = f"head {DEFAULTS['head']['kind']}"
    yield cost("step_cost_20000_vs_500", None, MANY, 1.1, f"{head}; {MET}", settings)
    many, few = peak_bytes(MANY), peak_bytes(DRAWS * KINDS)
    yield Result(
        "peak_bytes_20000_vs_500",
        significant(many / few),
        None,
        significant(many),
        significant(few),
        "bytes",
        1,
        f"{head}; resident beyond what Python and torch take; {MET}",
    )
    yield cost("step_cost_per_address_5000_vs_500", "per_address", FEWER, None, "", settings)


def cost(name: str, head: str | None, known: int, target: float | None, note: str, settings: Settings) -> Result:
    """A step by a network that knows so many addresses against one that knows the minibatch's only."""
    kinds, chosen = spread(known)
    minibatch = traces([chosen[place] for place in MIXED])
    large, small = Training(head, kinds), Training(head, chosen)
    if head is None:
        meet(large, kinds)
    measures = [milliseconds(training, minibatch) for training in (large, small)]
    return compare(name, *measures, unit="ms", target=target, settings=settings, note=note, rounds=3)


def spread(known: int) -> tuple[range, range]:
    """The kinds that have so many addresses, and 32 of them, evenly spread."""
    kinds = range(-(-known // DRAWS))
    return kinds, kinds[:: len(kinds) // KINDS][:KINDS]


def meet(training: Training, kinds: Sequence[int]) -> None:
    """Steps that touch every row of these kinds."""
    for start in range(0, len(kinds), MINIBATCH):
        training(traces(kinds[start : start + MINIBATCH]))


def milliseconds(training: Training, minibatch: TraceBatch) -> Measure:
    def measure() -> float:
        start = time.perf_counter()
        training(minibatch)
        return 1e3 * (time.perf_counter() - start)

    return measure


def peak_bytes(known: int) -> int:
    """Most memory in use while training with so many addresses, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return int(pool.apply(_peak_bytes, (known,)))


def _peak_bytes(known: int) -> int:
    torch.set_num_threads(1)
    Training(kinds=[0])(traces([0]))  # what the libraries allocate for themselves
    before = resident_peak()
    kinds, chosen = spread(known)
    training = Training(kinds=kinds)
    meet(training, kinds)
    training(traces([chosen[place] for place in MIXED]))
    return resident_peak() - before


def resident_peak() -> int:
    """Most bytes resident so far. From /proc: the system's ``ru_maxrss`` counts the parent before the start, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


if __name__ == "__main__":
    sys.exit(common.main("addresses", results))
