"""Inference over the ranks of an MPI job: the same posteriors whatever their number, and no rank is missed silently."""

from pathlib import Path

import numpy as np
import pytest

import etalumis as et
from etalumis.cli import main
from etalumis.inference import InferenceError
from etalumis.inference.executions import _TASK
from etalumis.networks import checkpoint
from etalumis.simulators.classics import gaussian
from launching import ENVIRONMENT, mpirun, needs_mpi, run
from network_models import small, traces

pytestmark = pytest.mark.timeout(170)

OBSERVED = {"obs0": 8.0, "obs1": 9.0}
TRACES = 2 * _TASK + 100

PROGRAM = """
import os
import sys

import numpy as np

import etalumis as et
from etalumis.distributions import Normal

count = 0


def model():
    global count
    count += 1
    mu = et.sample(Normal(1.0, 5**0.5), name="mu")
    if count == 700 and os.environ.get("FATE") == "dies":
        os.kill(os.getpid(), 9)
    if count == 700 and os.environ.get("FATE") == "fails":
        raise RuntimeError("the beam was dumped")
    et.observe(Normal(mu, 2**0.5), name="obs0")
    et.observe(Normal(mu, 2**0.5), name="obs1")


if __name__ == "__main__":
    told = []
    posterior = et.posterior(
        et.Model(model),
        {"obs0": 8.0, "obs1": 9.0},
        et.ImportanceSampling(workers="mpi"),
        num_traces=int(sys.argv[1]),
        seed=3,
        progress=lambda amount, note: told.append(amount),
    )
    chains = et.posterior(
        et.Model(model), {"obs0": 8.0, "obs1": 9.0}, et.RMH(chains=3, burn_in=50, workers="mpi"), num_traces=300, seed=3
    )
    shares = []
    et.posterior(
        et.Model(model),
        {"obs0": 8.0, "obs1": 9.0},
        et.ImportanceSampling(workers="mpi"),
        num_traces=100,
        progress=lambda amount, note: shares.append(amount),
    )
    np.savez("out.npz", mu=posterior.values("mu"), log_weights=posterior.log_weights, chains=chains.values("mu"))
    print("told", sum(told), "shares", sorted(shares))
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    needs_mpi()
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def futures(ranks: int, program: Path) -> list[str]:
    return [*mpirun(ranks), "-m", "mpi4py.futures", str(program), str(TRACES)]


@pytest.mark.parametrize("ranks", [3, *(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (2, 4))])
def test_the_same_whatever_the_number_of_ranks(program: Path, ranks: int) -> None:
    said = run(futures(ranks, program), cwd=program.parent)
    assert said.count("told") == 1, "rank 0 alone runs the program"
    shares = {2: [100], 3: [50, 50], 4: [32, 34, 34]}[ranks]  # of few traces each rank that waits gets some
    assert f"told {TRACES} shares {shares}" in said
    found = np.load(program.parent / "out.npz")
    alone = et.posterior(et.Model(gaussian), OBSERVED, et.ImportanceSampling(), num_traces=TRACES, seed=3)
    chains = et.posterior(et.Model(gaussian), OBSERVED, et.RMH(chains=3, burn_in=50), num_traces=300, seed=3)
    assert np.array_equal(found["mu"], alone.values("mu"))
    assert np.array_equal(found["log_weights"], alone.log_weights)
    assert np.array_equal(found["chains"], chains.values("mu"))


@pytest.mark.parametrize(
    ("fate", "words"),
    [("dies", ["rank", "signal 9"]), ("fails", ["RuntimeError: the beam was dumped", "Worker ", "program.py"])],
)
def test_a_lost_rank_or_an_error_ends_the_job(
    program: Path, monkeypatch: pytest.MonkeyPatch, fate: str, words: list[str]
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "FATE", fate)
    said = run(futures(3, program), code=None, cwd=program.parent)
    for word in words:
        assert word in said
    assert not (program.parent / "out.npz").exists()


def test_without_ranks_it_is_said_how_to_start() -> None:
    with pytest.raises(InferenceError, match=r"mpirun -n 5 python -m mpi4py\.futures"):
        et.posterior(et.Model(gaussian), OBSERVED, et.ImportanceSampling(workers="mpi"), num_traces=10)
    assert main(["infer", "engine=is", "engine.workers=mpi", "simulator=gaussian", "observe.obs0=1.0", "output=x"]) == 1


@pytest.mark.slow
def test_ranks_that_nobody_told_to_wait(program: Path) -> None:
    """mpirun without mpi4py.futures: every rank would do all the work."""
    assert "python -m mpi4py.futures" in run([*mpirun(2), str(program), "10"], code=None, cwd=program.parent)


def test_other_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["infer", "engine=is", "simulator=gaussian", "observe.obs0=1.0", "output=x"]
    assert main([*words, "engine.workers=many"]) == 1
    assert "engine.workers=many must be a whole number" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_by_the_command_line(tmp_path: Path) -> None:
    """Also refined; and a model of the user's own, from the folder where the command runs."""
    needs_mpi()
    (tmp_path / "mine.py").write_text("from etalumis.simulators.classics import gaussian\n")
    network = small(traces(gaussian, 100)).float()
    network.simulator = "gaussian"
    checkpoint.save(tmp_path / "network.pt", network)
    words = ["engine=ic", "checkpoint=network.pt", "simulator=custom", "simulator._target_=mine:gaussian"]
    words += ["observe.obs0=8.0", "observe.obs1=9.0", "num_traces=500", "output=post", "seed=2", "threads=1"]
    words += ["engine.refine.rounds=1", "engine.refine.num_traces=200", "engine.refine.epochs=2"]
    said = run([*mpirun(4), "-m", "etalumis.cli", "infer", *words, "engine.workers=mpi"], cwd=tmp_path)
    assert said.count("saved in post") == 1
    found = et.Posterior.load(tmp_path / "post")
    refine = et.Refine(rounds=1, num_traces=200, epochs=2)
    alone = et.posterior(et.Model(gaussian), OBSERVED, et.IC(network, refine=refine), num_traces=500, seed=2)
    # Not to the last bit: the network's batches are cut elsewhere.
    np.testing.assert_allclose(found.values("mu"), alone.values("mu"), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.log_weights, alone.log_weights, rtol=1e-3, atol=1e-2)
