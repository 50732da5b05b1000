"""What seldom happens on ranks: one error on all at once, less data than ranks, another number of them."""

import json
import threading
from pathlib import Path

import pytest
from torch.utils.data import Dataset

from etalumis.datamodules.loader import Loader
from etalumis.lit_models.fit import fit, write_diverged
from etalumis.lit_models.minibatch import with_minibatch
from etalumis.networks import ProposalError, TrainingBatch
from etalumis.storage import DatasetError, simulate
from etalumis.storage.ranks import launched_rank
from launching import mpirun, needs_mpi, run
from training_runs import SMALL, gaussian_model, settings

pytestmark = [
    pytest.mark.timeout(110),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def test_ranks_that_diverge_together_write_it_down_together(tmp_path: Path) -> None:
    path, together, errors = tmp_path / "result.json", threading.Barrier(8), list[Exception]()

    def rank(number: int) -> None:
        for _ in range(20):
            together.wait()
            try:
                write_diverged(path, 3, ProposalError("the weights have blown up"), number)
            except OSError as error:
                errors.append(error)

    ranks = [threading.Thread(target=rank, args=(number,)) for number in range(8)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert not errors
    assert json.loads(path.read_text()) == {"diverged": "the weights have blown up", "steps": 3}
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ("told", "rank"), [({"RANK": "3"}, 3), ({"SLURM_PROCID": "2"}, 2), ({"OMPI_COMM_WORLD_RANK": "1"}, 1)]
)
def test_which_rank_a_launcher_says_it_is(monkeypatch: pytest.MonkeyPatch, told: dict[str, str], rank: int) -> None:
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert launched_rank() == rank


def test_ranks_of_a_torchrun_on_each_node_of_slurms(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM knows of one process on the first node, torchrun of its second rank."""
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("RANK", "1")
    assert launched_rank() == 1


def test_parts_of_another_number_of_ranks_within_an_epoch(tmp_path: Path) -> None:
    """A minibatch over all ranks is cut by their number; where fewer go on, each takes more of the same parts."""
    simulate(gaussian_model, tmp_path / "data", 400, model="gaussian", workers=0, chunk_size=50)
    data, words = tmp_path / "data", ["minibatch=64", "data.batch_size=64"]
    fit(with_minibatch(settings(data, tmp_path / "out", *words, "trainer.max_steps=3"), ranks=2))
    module = fit(settings(data, tmp_path / "out", *words, "trainer.max_steps=5"))
    assert module.trainer.global_step == 5
    assert module.trainer.accumulate_grad_batches == 2
    fit(settings(data, tmp_path / "more", *words, "trainer.max_steps=3"))
    with pytest.raises(DatasetError, match="more ranks may need smaller parts: go on with as many, or with fewer"):
        fit(with_minibatch(settings(data, tmp_path / "more", *words, "trainer.max_steps=6"), ranks=2))


class Damaged(Dataset[TrainingBatch]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, place: int) -> TrainingBatch:
        raise EOFError("the file ends too early")


def test_an_error_of_reading_here_is_no_killed_process() -> None:
    with pytest.raises(EOFError, match="the file ends too early"):
        next(iter(Loader.of(Damaged(), [0], 0, None)))


@pytest.mark.slow
def test_fewer_traces_to_test_with_than_ranks(tmp_path: Path) -> None:
    needs_mpi()
    simulate(gaussian_model, tmp_path / "data", 60, model="gaussian", workers=0, chunk_size=60)
    words = [f"data.train={tmp_path / 'data'}", f"output={tmp_path / 'out'}", *SMALL, "trainer.max_epochs=1"]
    words += ["data.batch_size=8", "data.test_fraction=0.017", "strategy=mpi"]
    said = run([*mpirun(2), "-m", "etalumis", "train", *words])
    assert said.count("1 traces to test with are too few for 2 ranks") == 1
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert "loss/valid" in result
    assert "loss/test" not in result
