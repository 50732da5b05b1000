"""Phases of training iterations: timed, joined over ranks, logged, and drawn from the log."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from etalumis import cli
from etalumis.callbacks.phases import (
    BACKWARD,
    EXCHANGE,
    FORWARD,
    OPTIMISE,
    OTHER,
    PHASES,
    READ,
    WAITING,
    Balance,
    PhaseClock,
)
from etalumis.lit_models.fit import fit, summary
from etalumis.report.balance import Phases
from etalumis.storage import simulate
from launching import mpirun, needs_mpi, run
from training_runs import SMALL, branching_model, settings

pytestmark = [
    pytest.mark.timeout(300),
    # Lightning and TensorBoard use what newer packages discourage; nothing we could change.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

CPU = torch.device("cpu")
LOGGED = ("logger=tensorboard", "trainer.log_every_n_steps=4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "branching"
    simulate(branching_model, path, 400, model="branching", workers=0, chunk_size=100)
    return path


class Watch:
    """Tells the time that it is told."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def iteration(clock: PhaseClock, watch: Watch, **seconds: float) -> None:
    """Work through phases that take so long."""
    for phase, duration in seconds.items():
        clock.enter(phase)
        watch.time += duration
    clock.enter(OTHER)


# --- the clock ------------------------------------------------------------------------------------


def test_a_clock_tells_phases_apart() -> None:
    clock = PhaseClock(CPU, watch := Watch())
    clock.forget()
    watch.time += 10.0
    iteration(clock, watch, forward=20.0, backward=30.0, exchange=40.0, optimise=9.0)
    clock.close(read=6.0, waiting=30.0)
    iteration(clock, watch, forward=10.0, backward=12.0)
    watch.time += 2.0
    iteration(clock, watch, forward=11.0, backward=13.0)  # the second part of an accumulation
    clock.close(read=1.0, waiting=1.0)
    assert clock.iterations == 2
    found = [dict(zip(PHASES, row, strict=True)) for row in clock.take().tolist()]
    meant = {READ: 6.0, FORWARD: 20.0, BACKWARD: 30.0, WAITING: 30.0, EXCHANGE: 10.0, OPTIMISE: 9.0, OTHER: 4.0}
    assert found[0] == pytest.approx(meant)
    meant = {READ: 1.0, FORWARD: 21.0, BACKWARD: 25.0, WAITING: 0.0, EXCHANGE: 0.0, OPTIMISE: 0.0, OTHER: 1.0}
    assert found[1] == pytest.approx(meant), "no more waiting than the exchange took"
    assert clock.iterations == 0
    assert clock.take().shape == (0, len(PHASES))


def test_what_is_forgotten_does_not_count() -> None:
    clock = PhaseClock(CPU, watch := Watch())
    clock.forget()
    iteration(clock, watch, forward=1.0)
    clock.close(0.0, 0.0)
    watch.time += 1000.0  # a validation
    clock.forget()
    watch.time += 0.5
    iteration(clock, watch, forward=1.0)
    clock.close(0.0, 0.0)
    assert clock.take().sum() == pytest.approx(2.5)


def test_times_go_on_where_they_were_taken() -> None:
    clock = PhaseClock(CPU, watch := Watch())
    clock.forget()
    rows = []
    for _ in range(3):
        watch.time += 0.25
        iteration(clock, watch, forward=4.0)
        clock.close(0.0, 0.0)
        rows.append(clock.take())
    found = torch.cat(rows)
    assert found[:, PHASES.index(FORWARD)].tolist() == [4.0] * 3
    assert found[:, PHASES.index(OTHER)].tolist() == [0.25] * 3


def test_timing_an_iteration_costs_next_to_nothing() -> None:
    """Less than 0.5 % of 50 ms; the best of several, as other programs disturb."""
    clock = PhaseClock(CPU)
    clock.forget()
    costs = []
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(20):
            for phase in (FORWARD, BACKWARD, EXCHANGE, OPTIMISE, OTHER):
                clock.enter(phase)
            clock.close(0.0, 0.0)
        Balance.of(clock.take()[None])
        costs.append((time.perf_counter() - started) / 20)
    assert min(costs) < 0.005 * 0.05


# --- what several ranks' times say ----------------------------------------------------------------


def table(*ranks: dict[str, list[float]]) -> torch.Tensor:
    """(ranks, iterations, phases)."""
    iterations = len(next(iter(ranks[0].values())))
    return torch.tensor(
        [[[of.get(p, [0.0] * iterations)[i] for p in PHASES] for i in range(iterations)] for of in ranks]
    )


def test_the_best_time_is_the_mean_of_what_ranks_work() -> None:
    """Each rank is the slower one in one of two iterations: their sums alone would show no imbalance."""
    agreeing = 0.5
    found = Balance.of(
        table(
            {FORWARD: [2.0, 6.0], WAITING: [4.0 + agreeing, agreeing], EXCHANGE: [1.0, 1.0]},
            {FORWARD: [6.0, 2.0], WAITING: [agreeing, 4.0 + agreeing], EXCHANGE: [1.0, 1.0]},
        )
    )
    assert (found.actual, found.best) == (7.5, 5.5)
    assert found.imbalance == pytest.approx(2.0 / 5.5)
    assert found.imbalance_of(FORWARD) == pytest.approx(0.5)
    assert found.imbalance_of(READ) == 0.0
    assert found.phases[:, PHASES.index(EXCHANGE)].tolist() == [1.5, 1.5], "agreeing is no waiting"


def test_equal_ranks_are_balanced_and_one_rank_is_always() -> None:
    rank = {FORWARD: [2.0], WAITING: [0.25], EXCHANGE: [0.5]}
    for found in (Balance.of(table(rank, rank, rank)), Balance.of(table(rank))):
        assert found.imbalance == 0.0
        assert found.actual == found.best == 2.75


# --- training -------------------------------------------------------------------------------------


def test_one_rank_logs_its_phases(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("trainer.max_steps=15", "trainer.val_check_interval=2", *LOGGED)
    module = fit(settings(data, tmp_path / "run", *words))
    found = Phases.read(tmp_path / "run")
    assert (found.ranks, found.dropped) == (1, 0)
    assert found.steps.tolist() == [4, 8, 12, 15], "the rest is logged at the end"
    assert found.iterations.tolist() == [4, 4, 4, 3]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    total = float((found.seconds.sum((1, 2)) * found.iterations).sum())
    assert total == pytest.approx(result["seconds"], rel=0.02), "phases make up the time of training"
    assert 14 * 40 < result["traces"] <= 15 * 64
    for phase in (READ, FORWARD, BACKWARD, OPTIMISE):
        assert bool((found.seconds[:, :, PHASES.index(phase)] > 0.0).all()), phase
    for phase in (WAITING, EXCHANGE):
        assert not found.seconds[:, :, PHASES.index(phase)].any()
    assert "traces/s" in summary(module)
    assert cli.main(["balance", str(tmp_path / "run"), f"output={tmp_path / 'figure'}"]) == 0
    assert "An iteration of 1 rank" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "figure" / "balance.json").read_text())
    assert numbers["iterations"] == 11, "the first interval is left out"
    assert numbers["actual_s"] == pytest.approx(numbers["best_s"])
    assert (tmp_path / "figure" / "balance.png").stat().st_size > 10_000


def test_parts_of_an_iteration_are_summed(data: Path, tmp_path: Path) -> None:
    words = ("trainer.max_steps=4", "trainer.accumulate_grad_batches=3", "data.batch_size=16", *LOGGED)
    fit(settings(data, tmp_path / "run", *words))
    found = Phases.read(tmp_path / "run")
    assert found.iterations.tolist() == [4]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 4 * 3 * 12 < result["traces"] <= 4 * 3 * 16
    assert found.actual * 4 == pytest.approx(result["seconds"], rel=0.02)


@pytest.mark.slow
def test_two_ranks_log_what_each_did(data: Path, tmp_path: Path) -> None:
    needs_mpi()
    output = tmp_path / "run"
    small = [word for word in SMALL if not word.startswith("logger")]
    words = [*small, "strategy=mpi", f"data.train={data}", f"output={output}", "trainer.max_epochs=2", *LOGGED]
    said = run([*mpirun(2), "-m", "etalumis.cli", "train", *words], timeout=280)
    found = Phases.read(output)
    assert found.ranks == 2
    result = json.loads((output / "result.json").read_text())
    assert result["traces"] == 2 * 380, "of both ranks"
    assert result["imbalance"] > 0.0
    assert "waiting for other ranks" in said
    assert 0.0 < found.best <= found.actual
    assert bool((found.of_ranks[:, PHASES.index(EXCHANGE)] > 0.0).all())
    waiting = found.seconds[:, :, PHASES.index(WAITING)]
    assert waiting.any()
    assert bool((found.imbalance[:, PHASES.index(FORWARD)] > 0.0).all())
    total = float((found.seconds.sum((1, 2)) / 2 * found.iterations).sum())
    assert total == pytest.approx(result["seconds"], rel=0.1)


# --- the command ----------------------------------------------------------------------------------


def written(folder: Path, ranks: int, intervals: int = 6) -> Path:
    """A log as a training of many ranks leaves it."""
    from torch.utils.tensorboard import SummaryWriter

    generator = torch.Generator().manual_seed(0)
    with SummaryWriter(str(folder)) as writer:
        for number in range(intervals):
            times = 0.01 * (1.0 + torch.rand(ranks, 10, len(PHASES), generator=generator))
            found = Balance.of(times)
            step = 10 * number + 9
            for name, of_ranks in zip(PHASES, found.phases.T, strict=True):
                writer.add_tensor(f"ranks/{name}_s", of_ranks.float(), step)
                if ranks > 1:
                    writer.add_scalar(f"balance/imbalance_{name}", found.imbalance_of(name), step)
            writer.add_scalar("throughput/traces_per_s", 1000.0 + number, step)
    return folder


@pytest.mark.parametrize("ranks", [1, 2, 40])
def test_figures_of_any_number_of_ranks(tmp_path: Path, ranks: int, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(tmp_path / "logs", ranks)
    assert cli.main(["balance", str(tmp_path), "title=some ranks"]) == 0
    found = Phases.read(folder, 1)
    numbers: dict[str, Any] = json.loads((tmp_path / "balance.json").read_text())
    assert (numbers["ranks"], numbers["iterations"], numbers["dropped_intervals"]) == (ranks, 50, 1)
    assert numbers["actual_s"] == pytest.approx(found.actual)
    assert numbers["peak_traces_per_s"] == 1005.0
    assert len(numbers["phases"][FORWARD]["ranks_s"]) == ranks
    if ranks > 1:
        assert numbers["phases"][FORWARD]["imbalance"] > 0.05
    assert ("best" in capsys.readouterr().out) is (ranks > 1)
    assert (tmp_path / "balance.png").stat().st_size > 10_000


def test_a_log_that_says_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def fails(folder: Path, *words: str) -> str:
        assert cli.main(["balance", f"log={folder}", *words]) == 1
        return capsys.readouterr().err

    assert "there is no folder" in fails(tmp_path / "nowhere")
    assert "no TensorBoard log" in fails(tmp_path)
    with SummaryWriter(str(tmp_path / "a")) as writer:
        writer.add_scalar("loss/train", 1.0, 1)
    assert "says nothing of phases" in fails(tmp_path)
    written(tmp_path / "b", 1)
    assert "2 trainings" in fails(tmp_path)
    assert "skip=-1" in fails(tmp_path / "b", "skip=-1")
    assert len(Phases.read(tmp_path / "b", 1000).steps) == 1, "something is left"
