"""Weak scaling: real ranks on this machine, and synchronous training of a thousand ranks on paper.

    python -m benchmarks.scaling --json [--quick] [--figure docs/figures/scaling.png]

``efficiency_2`` and ``efficiency_4``: traces per second and rank of ``mpirun -n R etalumis train strategy=mpi`` over
those of one rank, medians over the logged intervals of every run; runs with 1, 2 and 4 ranks alternate. Ranks have one
thread each. Where there are fewer cores than ranks they share them, and all share the memory: on two cores
``efficiency_4`` can't exceed 0.5.

``predicted_efficiency_1024``: what :mod:`benchmarks.synchronous` makes of minibatches of the sampler, each measured in
this run (:mod:`benchmarks.minibatch_times`), and of published constants of an interconnect, for the way to make
minibatches with which 1,024 ranks train most traces a second, without compression and overlap;
``predicted_WAY_1024`` are all of them, ratio to one rank that works the same way. They are of the paper's sizes and 3D
CNN, each rank as fast as a socket of the paper's, 51.1 traces/s. The paper measured 0.79 (Edison) and 0.5 (Cori) with
2,048 ranks on 1,024 nodes.
``predicted_small_WAY_1024`` (not with ``--quick``) are of the network of ``network=tau``, each rank as fast as a core
here: its iterations are so short that exchange and the step on everybody's rows count.

Times of minibatches are processor times, the least of several: noise of the system is not in them, nor is reading,
which loader processes do meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.common import Result, Settings, significant
from benchmarks.minibatch_times import (
    BATCH,
    LARGE,
    PAPER_RATE,
    SMALL,
    WAYS,
    CNNCost,
    Worker,
    average_draws,
    sampled,
    with_cnn,
)
from benchmarks.scaling_figure import draw
from benchmarks.synchronous import ARIES, Measured, Simulated, efficiency, simulate
from etalumis.execution.pool import cores
from etalumis.networks.memory import keep_freed_memory
from etalumis.report.balance import Phases

TRACES, QUICK_TRACES = 10_000, 2_500
REAL, QUICK_REAL = (1, 2, 4), (1, 2)
STEPS, QUICK_STEPS = 120, 40  # of a training
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
MOST, QUICK_MOST = 60, 25  # minibatches measured with the paper's sizes
LEAST, MINIBATCHES = 200, 8192  # iterations of a simulation, or as many as take so many minibatches
TARGET = 0.85
PAPER = "the paper's sizes and 3D CNN, a rank as fast as its socket"
HERE = "network=tau, a rank as fast as a core here"
ROOT = Path(__file__).parents[1]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

Curves = dict[str, dict[int, Simulated]]  # by way and number of ranks


def results(settings: Settings, figure: Path | None = None) -> Iterator[Result]:
    """All results; a figure where there is a path for it."""
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        folders = datasets(Path(temporary), QUICK_TRACES if settings.quick else TRACES)
        rates = real(folders["sorted"], Path(temporary), settings)
        yield from real_results(rates)
        curves = {PAPER: on_paper(Worker(LARGE, folders["random"]), folders, settings, paper=True)}
        yield from paper_results(curves[PAPER], "", settings)
        if not settings.quick:
            curves[HERE] = on_paper(Worker(SMALL, folders["random"]), folders, settings)
            yield from paper_results(curves[HERE], "small_", settings)
    if figure is not None:
        one = statistics.median(rates[1])
        draw(figure, curves, {ranks: statistics.median(of) / ranks / one for ranks, of in rates.items()})


# --- real ranks ---------------------------------------------------------------------------------------------------


def etalumis(*words: str, ranks: int = 1) -> None:
    """Run a command of the package, under MPI where there are several ranks."""
    mpirun = [str(Path(sys.executable).with_name("mpirun")), "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
    command = [*(mpirun if ranks > 1 else []), sys.executable, "-m", "etalumis.cli", *words]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def datasets(folder: Path, traces: int) -> dict[str, Path]:
    """τ decays in random order, and sorted by type."""
    etalumis("simulate", "simulator=tau", f"num_traces={traces}", f"output={folder / 'random'}", "workers=0")
    etalumis("sort", f"input={folder / 'random'}", f"output={folder / 'sorted'}", "workers=0")
    return {"random": folder / "random", "sorted": folder / "sorted"}


def real(data: Path, folder: Path, settings: Settings) -> dict[int, list[float]]:
    """Traces per second of all ranks in each interval, by number of ranks."""
    rates: dict[int, list[float]] = {}
    words = [*SMALL, f"data.train={data}", f"data.batch_size={BATCH}", "data.buckets=10", "data.valid_fraction=0"]
    words += [
        "data.workers=0",
        "trainer.log_every_n_steps=5",
        f"trainer.max_steps={QUICK_STEPS if settings.quick else STEPS}",
    ]
    words += ["trainer.max_epochs=1000"]
    for number in range(1 if settings.quick else 3):
        for ranks in QUICK_REAL if settings.quick else REAL:
            output = folder / f"{ranks}_{number}"
            etalumis("train", *words, f"output={output}", *(["strategy=mpi"] if ranks > 1 else []), ranks=ranks)
            rates.setdefault(ranks, []).extend(Phases.read(output, 2).traces_per_s.tolist())
    return rates


def real_results(rates: dict[int, list[float]]) -> Iterator[Result]:
    """Several ranks beside one."""
    one = statistics.median(rates[1])
    for ranks in sorted(rates.keys() - {1}):
        median, peak = statistics.median(rates[ranks]), max(rates[ranks])
        note = (
            f"{ranks} ranks on {cores()} cores: {median:,.0f} traces/s, peak {peak:,.0f}; one rank {one:,.0f}, peak "
            f"{max(rates[1]):,.0f}"
        )
        ours, ratio = significant(median / ranks), significant(median / ranks / one)
        yield Result(
            f"efficiency_{ranks}", ratio, None, ours, significant(one), "traces/s and rank", len(rates[ranks]), note
        )


# --- on paper -----------------------------------------------------------------------------------------------------


def on_paper(worker: Worker, folders: dict[str, Path], settings: Settings, paper: bool = False) -> Curves:
    """For each way to make minibatches; ``paper`` adds the paper's CNN, and takes ranks as fast as the paper's."""
    draws = average_draws(folders)
    repeats = (1 if settings.quick else 2) if paper else 3
    most = (QUICK_MOST if settings.quick else MOST) if paper else None
    cnn = CNNCost.measured(repeats) if paper else None
    measured: dict[tuple[Any, ...], Measured] = {}
    curves: Curves = {}
    speed = 1.0
    for name, way in WAYS.items():
        if way.overlap and not paper:
            continue  # without a CNN there is little to hide behind
        key = (way.data, way.words)
        if key not in measured:
            found = worker.measure(sampled(way, folders, draws), repeats, most)
            measured[key] = found if cnn is None else with_cnn(found, cnn)
        if paper and not curves:
            speed = PAPER_RATE / simulate(measured[key], 1).rate
        make = partial(simulate, measured[key], network=ARIES, speed=speed)
        curves[name] = {
            ranks: make(
                ranks,
                compression=way.compression,
                parts=way.parts,
                overlap=way.overlap,
                iterations=max(LEAST, MINIBATCHES // (ranks * way.parts)),
            )
            for ranks in RANKS
        }
    return curves


def paper_results(curves: Curves, prefix: str, settings: Settings) -> Iterator[Result]:
    """The best way, where there is no prefix, and all."""
    plain = [way for way in curves if WAYS[way].compression == 1.0 and not WAYS[way].overlap]
    best = max(plain, key=lambda way: curves[way][1024].rate)
    for way in curves if prefix else [best, *curves]:
        one, many = curves[way][1], curves[way][1024]
        note = (
            f"{WAYS[way].about}: {many.rate:,.0f} traces/s, peak {many.peak:,.0f}; waiting {many.waiting:.1%} and "
            f"exchange {many.exchange:.1%} of the time, {many.bytes / 1e6:.0f} MB; with 2,048 ranks "
            f"{efficiency(curves[way][2048], one):.2f}; paper: Edison 0.79, Cori 0.5"
        )
        name = f"predicted_{prefix}{way}_1024"
        if not prefix and way == best:
            name, best = "predicted_efficiency_1024", ""
        yield Result(
            name,
            significant(efficiency(many, one)),
            TARGET if name == "predicted_efficiency_1024" else None,
            significant(many.rate / many.ranks),
            significant(one.rate),
            "traces/s and rank",
            1 if settings.quick else 2,
            note,
        )


def main(argv: list[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--figure", type=Path, help="draw efficiencies against ranks")
    arguments, others = parser.parse_known_args(argv)
    return common.main("scaling", partial(results, figure=arguments.figure), others, pinned=False)


if __name__ == "__main__":
    sys.exit(main())
