"""Training on several ranks, started by mpirun and torchrun: the same network as one process makes."""

import json
from pathlib import Path

import pytest
import torch

from etalumis.lit_models.fit import fit
from etalumis.storage import simulate
from launching import mpirun, needs_mpi, run
from training_runs import SMALL, branching_model, gaussian_model, settings

pytestmark = [
    pytest.mark.timeout(110),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

PROGRAM = ["-m", "etalumis.cli", "train"]
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


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_train_the_network_that_one_process_trains(data: Path, tmp_path: Path, ranks: int) -> None:
    """One process that accumulates the ranks' minibatches makes the same steps: in float64 up to rounding."""
    needs_mpi()
    size = 64 // ranks
    one = [*DOUBLE, f"data.batch_size={size}", f"trainer.accumulate_grad_batches={ranks}"]
    fit(settings(data / "branching", tmp_path / "one", *one))
    many = tmp_path / "many"
    said = on_ranks(mpirun(ranks), data / "branching", many, *DOUBLE, f"data.batch_size={size}", "strategy=mpi")
    assert said.count("network.pt") == 1, "rank 0 alone speaks"
    for name in ("loss/train", "loss/valid", "learning_rate", "gradient_norm"):
        assert scalars(many, name) == pytest.approx(scalars(tmp_path / "one", name), rel=1e-6), name
    ours, theirs = weights(many), weights(tmp_path / "one")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-7, atol=1e-9, msg=name)
    results = [json.loads((path / "result.json").read_text()) for path in (many, tmp_path / "one")]
    assert results[0]["traces"] == results[1]["traces"], "of all ranks"
