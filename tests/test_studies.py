"""Studies of whole trainings: what they take for what ranks take, and that they run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from etalumis.storage import Dataset

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import bucketing, convergence, trainings  # noqa: E402
from benchmarks.bucketing import RanksInTurn, Times  # noqa: E402

from etalumis.datamodules.minibatches import size  # noqa: E402

pytestmark = [
    pytest.mark.timeout(300),
    # Lightning and TensorBoard use what newer packages discourage; nothing we could change.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
RANKS, OF_RANK = 4, 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """τ decays, also sorted."""
    path = tmp_path_factory.mktemp("study")
    trainings.tau_data(path, 1024, 64, sorted_too=True)
    return path


def module_of(data: Path, continuous: bool) -> RanksInTurn:
    # fmt: off
    return RanksInTurn(RANKS, continuous, train=data / "sorted", valid=data / "valid", batch_size=OF_RANK, buckets=4,
                       workers=0, seed=3)
    # fmt: on


@pytest.mark.parametrize("continuous", [False, True])
def test_an_iteration_is_what_ranks_would_take(data: Path, continuous: bool) -> None:
    module = module_of(data, continuous)
    orders = []
    for epoch in (0, 1):
        every = module.ranks_order.iterations(epoch)
        (joined,) = module.ranks_order.epoch(epoch)
        assert all(len(iteration) == RANKS for iteration in every)
        assert [size(m) for m in joined] == [sum(map(size, iteration)) for iteration in every]
        traces = [(piece.chunk, row) for m in joined for piece in m for row in piece.rows.tolist()]
        assert len(traces) == len(set(traces))
        assert 1024 - len(traces) < RANKS * 4, "fewer than ranks are left of a bucket"
        assert len(joined) == module.order.sizes[0]
        orders.append(traces)
    assert orders[0] != orders[1]


def test_continuous_buckets_go_from_short_to_long_traces(data: Path) -> None:
    dataset = Dataset(data / "sorted")
    lengths = [np.asarray(dataset.read(k).lengths) for k in range(len(dataset.chunks))]

    def of_iterations(continuous: bool) -> list[float]:
        every = module_of(data, continuous).ranks_order.epoch(0)[0]
        return [float(np.mean(np.concatenate([lengths[p.chunk][p.rows] for p in m]))) for m in every]

    rising = of_iterations(True)
    assert np.corrcoef(np.arange(len(rising)), rising)[0, 1] > 0.7
    assert abs(np.corrcoef(np.arange(len(rising)), of_iterations(False))[0, 1]) < 0.7


def test_synchronous_ranks_wait_for_the_slowest() -> None:
    times = Times(np.array([[1.0, 3.0], [2.0, 2.0]]), np.array([0.5, 0.5]), 90)
    assert times.balanced == pytest.approx(90 / 5)
    assert times.together == pytest.approx(90 / 6)
    assert times.balance == pytest.approx(4 / 5)


def test_a_study_does_not_take_another_training_for_its_own(data: Path, tmp_path: Path) -> None:
    (tmp_path / "overrides.json").write_text(json.dumps(["seed=1"]))
    with pytest.raises(ValueError, match="holds a training with other settings"):
        trainings.train(tmp_path, ["seed=2"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "names"),
    [
        (convergence, {f"loss_minibatch_{m}" for m in convergence.QUICK.minibatches} | {"deviation_of_seeds"}),
        (
            bucketing,
            {f"rate_{s}_vs_sorted" for s in bucketing.TIMED} | {f"loss_{s}" for s in bucketing.SCHEMES},
        ),
    ],
)
def test_studies_run_and_draw(
    study: object, names: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.main(["--quick", "--json", "--folder", str(tmp_path), "--figures", str(tmp_path)]) == 0  # type: ignore[attr-defined]
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert {result["name"] for result in results} == names
    assert all(result["ours"] > 0.0 for result in results)
    assert list(tmp_path.glob("*.png"))
