"""Training on several ranks, started by mpirun and torchrun: the same network as one process makes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from etalumis import cli
from etalumis.conf.compose import compose, plain
from etalumis.execution.pool import cores
from etalumis.lit_models.fit import among_ranks, fit
from etalumis.storage import simulate
from launching import mpirun, needs_mpi, run, torchrun
from training_runs import SMALL, branching_model, gaussian_model, settings

pytestmark = [
    pytest.mark.timeout(170),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

PROGRAM = ["-m", "etalumis", "train"]
LOGGED = ["trainer.max_epochs=1", "trainer.log_every_n_steps=1", "logger=tensorboard", "seed=3"]
DOUBLE = [*LOGGED, "trainer.precision=64-true"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets by model name; the last minibatches of each are small."""
    path = tmp_path_factory.mktemp("data")
    for make, count in ((gaussian_model, 600), (branching_model, 330)):
        name = make().name
        simulate(make, path / name, count, model=name, workers=0, chunk_size=50)
    return path


def on_ranks(launcher: list[str], train: Path, output: Path, *words: str, code: int | None = 0) -> str:
    return run([*launcher, *PROGRAM, f"data.train={train}", f"output={output}", *SMALL, *words], code)


def scalars(output: Path, name: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "logs"))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


def weights(output: Path) -> dict[str, torch.Tensor]:
    state = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Trainings in one process that accumulates what so many ranks share."""
    made: dict[int, Path] = {}

    def output(ranks: int) -> Path:
        if ranks not in made:
            made[ranks] = tmp_path_factory.mktemp("one")
            words = [*DOUBLE, f"data.batch_size={64 // ranks}", f"trainer.accumulate_grad_batches={ranks}"]
            fit(settings(data / "branching", made[ranks], *words))
        return made[ranks]

    return output


@pytest.mark.parametrize(
    ("launcher", "ranks", "strategy"),
    [
        (mpirun, 2, ["strategy=mpi"]),
        pytest.param(mpirun, 4, ["strategy=mpi", "strategy.overlap=true"], marks=pytest.mark.slow),
        pytest.param(torchrun, 2, ["strategy=ddp_rows"], marks=pytest.mark.slow),
    ],
)
def test_ranks_train_the_network_that_one_process_trains(
    data: Path,
    alone: Callable[[int], Path],
    tmp_path: Path,
    launcher: Callable[[int], list[str]],
    ranks: int,
    strategy: list[str],
) -> None:
    """In float64 the steps are equal up to rounding."""
    if launcher is mpirun:
        needs_mpi()
    words = [*DOUBLE, f"data.batch_size={64 // ranks}", *strategy]
    said = on_ranks(launcher(ranks), data / "branching", tmp_path, *words)
    assert said.count("network.pt") == said.count("throughput") == said.count("train: step") == 1, "rank 0 alone speaks"
    assert len([*(tmp_path / "logs").rglob("events*")]) == 1
    one = alone(ranks)
    for name in ("loss/train", "loss/valid", "learning_rate", "gradient_norm"):
        assert scalars(tmp_path, name) == pytest.approx(scalars(one, name), rel=1e-6), name
    ours, theirs = weights(tmp_path), weights(one)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-7, atol=1e-9, msg=name)
    results = [json.loads((path / "result.json").read_text()) for path in (tmp_path, one)]
    assert results[0]["traces"] == results[1]["traces"], "of all ranks"


SPY = """
import json, torch
from pathlib import Path
from pytorch_lightning import Callback

class Spy(Callback):
    def on_train_batch_start(self, trainer, module, batch, number):
        if number == 0:
            noise = torch.rand(1).item()
            first = next(module.parameters()).sum().item()
            read = trainer.train_dataloader.num_workers
            seen = [noise, first, torch.get_num_threads(), read]
            Path(__file__).with_name(f"rank{trainer.global_rank}.json").write_text(json.dumps(seen))
"""


@pytest.mark.slow
def test_what_ranks_share_and_what_each_has_of_its_own(
    data: Path, alone: Callable[[int], Path], tmp_path: Path
) -> None:
    """One network, noise and cores of their own; and gradients that travel in bf16 teach nearly the same."""
    needs_mpi()
    (tmp_path / "spy.py").write_text(SPY)
    words = ["strategy=mpi", "strategy.compression=bf16", "+callbacks.spy._target_=spy.Spy", "data.workers=null"]
    launcher = ["env", f"PYTHONPATH={tmp_path}", *mpirun(2)]
    on_ranks(launcher, data / "branching", tmp_path / "d", *LOGGED, "data.batch_size=32", *words)
    seen = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    (noise, first, threads, workers), (other, second, *others) = seen
    assert noise != other, "random numbers of its own"
    assert first == second, "one network"
    share = max(cores() // 2, 1)
    assert [threads, workers] == others == [share, int(share > 1)]
    ours, theirs = scalars(tmp_path / "d", "loss/valid"), scalars(alone(2), "loss/valid")
    assert ours == pytest.approx(theirs, rel=0.01)


def test_cores_of_a_rank_are_read_with_and_computed_with() -> None:
    def workers(cores: int, *words: str) -> int:
        count: int = among_ranks(plain(compose("train", ["threads=1", *words])), cores)["data"]["workers"]
        return count

    assert [workers(cores, "data.train=x") for cores in (1, 8)] == [0, 1]
    assert [workers(cores, "data=online") for cores in (1, 2, 16)] == [1, 1, 15], "all but one simulate"
    assert workers(8, "data.train=x", "data.workers=3") == 3


# --- errors -----------------------------------------------------------------------------------------------------------


def says(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a training that must fail says."""
    assert cli.main(["train", "logger=none", *words]) == 1
    return capsys.readouterr().err


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Mpirun's word that this is one of two."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    return monkeypatch


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give strategy=mpi"),
        (("strategy=mpi", "tune=lr"), "a range test runs in one process"),
        (("strategy=mpi", "search=lstm"), "a search runs in one process"),
        (("strategy=mpi", "--multirun", "seed=1,2"), "a search runs in one process"),
        (("strategy=ddp_rows",), "those of mpirun take strategy=mpi"),
    ],
)
def test_what_several_ranks_are_refused(
    launched: pytest.MonkeyPatch,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert message in says(capsys, f"data.train={data / 'branching'}", f"output={tmp_path / 'd'}", *words)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_mpi_without_mpi4py(
    launched: pytest.MonkeyPatch, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ranks: int
) -> None:
    launched.setenv("OMPI_COMM_WORLD_SIZE", str(ranks))
    launched.setitem(sys.modules, "mpi4py", None)
    words = [f"data.train={data / 'branching'}", f"output={tmp_path / 'd'}", "strategy=mpi"]
    assert "pip install 'etalumis[mpi]'" in says(capsys, *words)


def test_ranks_of_torchrun_are_none_of_mpi(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = [f"data.train={data / 'branching'}", f"output={tmp_path / 'd'}", "strategy=mpi"]
    assert "strategy=ddp_rows in place of strategy=mpi" in says(capsys, *words)


def test_what_is_wrong_on_all_ranks_is_said_once(tmp_path: Path) -> None:
    needs_mpi()
    words = [*mpirun(2), *PROGRAM, "data.train=nowhere", f"output={tmp_path}", "trainer.max_epoch=3"]
    assert run(words, code=1).count("etalumis train:") == 1


def test_one_rank_of_a_strategy_of_many(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_mpi()
    words = [
        f"data.train={data / 'branching'}",
        f"output={tmp_path}",
        *SMALL,
        "trainer.max_epochs=1",
        "strategy=mpi",
        "threads=1",
    ]
    assert cli.main(["train", *words]) == 0
    assert "on one rank; a launcher starts more" in capsys.readouterr().err
