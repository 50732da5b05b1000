"""Online training on several ranks, where each meets addresses that the others lack."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import etalumis as et
from etalumis.conf.compose import compose, plain
from etalumis.distributions import Categorical, Normal, Poisson, Uniform
from etalumis.lit_models.fit import fit
from etalumis.networks import checkpoint
from launching import mpirun, needs_mpi, run

pytestmark = [
    pytest.mark.timeout(110),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

WORDS = [
    "data=online", "simulator=custom", "simulator._target_=test_online_ranks:spread", "data.workers=0",
    "data.epoch_traces=192", "data.batch_size=16", "data.chunk_size=16", "data.valid_traces=32",
    "data.sample_traces=16", "data.seed=5", "trainer.max_epochs=1", "trainer.precision=64-true", "logger=none",
    "network.core.hidden=8", "network.head.hidden=8", "network.observation_embedding=8",
]  # fmt: skip


def spread() -> float:
    """Some of many addresses: the number of categories is part of one."""
    x = float(et.sample(Normal(0.0, 1.0), name="x"))
    many = int(et.sample(Poisson(2.0), control=False))
    if many:
        x += int(et.sample(Categorical(np.full(many + 1, 1.0 / (many + 1))), name="which"))
    if many > 4:
        x += float(et.sample(Uniform(0.0, 1.0), name="more"))
    et.observe(Normal(x, 1.0), name="y")
    return x


def trained(output: Path, *words: str) -> Path:
    """A training in this process."""
    fit(plain(compose("train", [*WORDS, f"output={output}", *words])))
    return output


def trained_on_ranks(ranks: int, output: Path, *words: str) -> Path:
    program = ["-m", "etalumis.cli", "train", *WORDS, f"output={output}", "strategy=mpi", *words]
    run([*mpirun(ranks), *program], cwd=Path(__file__).parent)
    return output


def result(output: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((output / "result.json").read_text())
    return found


def assert_same_network(one: Path, other: Path) -> None:
    (a, _), (b, _) = (checkpoint.load(path / "network.pt") for path in (one, other))
    assert a.layout.rows == b.layout.rows
    ours, theirs = a.state_dict(), b.state_dict()
    for name, tensor in ours.items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-8, msg=name)


def test_ranks_grow_together(tmp_path: Path) -> None:
    """One process that accumulates the ranks' minibatches meets the same traces, in the same order."""
    needs_mpi()
    one = trained(tmp_path / "one", "trainer.accumulate_grad_batches=2")
    assert result(one)["addresses"] > len(
        checkpoint.load(trained(tmp_path / "few", "data.unknown=prior") / "network.pt")[0].layout
    )
    assert_same_network(trained_on_ranks(2, tmp_path / "two"), one)


@pytest.mark.slow
def test_traces_with_unknown_addresses_are_left_out_and_counted(tmp_path: Path) -> None:
    needs_mpi()
    words = ("data.unknown=discard", "trainer.accumulate_grad_batches=2")
    one = trained(tmp_path / "one", *words)
    two = trained_on_ranks(2, tmp_path / "two", "data.unknown=discard")
    assert result(one)["discarded_traces"] == result(two)["discarded_traces"] > 0
    assert result(one)["traces"] + result(one)["discarded_traces"] == 192
    assert_same_network(two, one)
