"""The exchange of gradients between ranks that real launchers start; tests/exchange_ranks.py says what holds there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import launching
from etalumis.optim.parts import Parts
from etalumis.strategies.collective import CollectiveError
from etalumis.strategies.exchange import RowExchange
from etalumis.strategies.mpi import MPICollective
from etalumis.strategies.torch_distributed import Placement, TorchCollective, first_host

pytestmark = pytest.mark.timeout(300)

PROGRAM = Path(__file__).with_name("exchange_ranks.py")
LAUNCHERS = ("RANK", "WORLD_SIZE", "OMPI_", "PMI", "MPI_", "SLURM_", "MASTER_")
ENVIRONMENT = {
    name: value
    for name, value in launching.ENVIRONMENT.items()
    if name.startswith("OMPI_ALLOW_") or not name.startswith(LAUNCHERS)
}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=280)


def assert_held(done: subprocess.CompletedProcess[str], ranks: int) -> None:
    for rank in range(ranks):
        assert f"rank {rank}: all checks held" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(("ranks", "end"), [(2, "abort"), (4, "")])
def test_over_mpi(ranks: int, end: str) -> None:
    """The smaller job ends by one rank's abort while the other waits for it."""
    launching.needs_mpi()
    done = run(*launching.mpirun(ranks), str(PROGRAM), "mpi", end)
    assert_held(done, ranks)
    assert (done.returncode != 0) == ("rank 1 of 2: out of cheese" in done.stderr) == (end == "abort"), done.stderr


def test_over_torch_distributed() -> None:
    done = run(*launching.torchrun(2), str(PROGRAM), "gloo")
    assert_held(done, 2)
    assert done.returncode == 0, done.stderr


def test_what_is_no_lost_rank_is_not_called_one() -> None:
    """NCCL's complaint of more ranks than cards, beside gloo's of a connection that is gone."""
    ranks = TorchCollective.__new__(TorchCollective)
    ranks.rank, ranks.world_size = 1, 4

    def failing(message: str) -> None:
        def start() -> None:
            raise RuntimeError(message)

        ranks._finish(start, "an all-reduce")

    with pytest.raises(CollectiveError, match=r"rank 1 of 4: an all-reduce failed \(Duplicate GPU"):
        failing("Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 3b000")
    with pytest.raises(CollectiveError, match="rank 1 of 4 lost another in an all-reduce"):
        failing("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1. This is typically caused by")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that no launcher has written to."""
    for name in os.environ:
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("launched", ["1", "2"])
def test_mpi4py_that_is_missing(bare: pytest.MonkeyPatch, launched: str) -> None:
    bare.setenv("OMPI_COMM_WORLD_SIZE", launched)
    bare.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(CollectiveError, match=r"pip install 'etalumis\[mpi\]'"):
        MPICollective()


def test_mpi_under_torchrun(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("WORLD_SIZE", "2")
    with pytest.raises(CollectiveError, match="strategy=ddp_rows in place of strategy=mpi"):
        MPICollective()


def test_torch_distributed_without_a_launcher(bare: pytest.MonkeyPatch) -> None:
    with pytest.raises(CollectiveError, match="start the command with torchrun"):
        TorchCollective()


def test_ranks_that_do_not_come(bare: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        bare.setenv(name, value)
    with pytest.raises(CollectiveError, match="rank 1 of 2 does not find the others at env://"):
        TorchCollective("gloo", timeout=1.0)


def test_overlap_needs_an_mpi_that_serves_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchCollective, "serves_threads", False)
    ranks = TorchCollective.__new__(TorchCollective)
    parts = Parts(torch.nn.Linear(1, 1))
    with pytest.raises(CollectiveError, match=r"strategy.overlap=true: this MPI serves one thread"):
        RowExchange(ranks, parts, last="bias")
    RowExchange(ranks, parts)


def test_slurm_tells_the_ranks(bare: pytest.MonkeyPatch) -> None:
    job = {
        "SLURM_PROCID": "5",
        "SLURM_NTASKS": "16",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_JOB_NODELIST": "nid[00007-00010]",
        "SLURM_JOB_ID": "1234567",
    }
    for name, value in job.items():
        bare.setenv(name, value)
    first = Placement.of_job()
    assert (first.rank, first.world_size) == (5, 8)
    assert first.address.startswith("tcp://nid00007:")
    bare.setenv("SLURM_STEP_ID", "1")
    second = Placement.of_job()
    ports = [int(placement.address.rsplit(":", 1)[1]) for placement in (first, second)]
    assert ports[0] != ports[1]
    assert all(1024 < port < 32_768 for port in ports)
    bare.setenv("MASTER_ADDR", "10.0.0.1")
    bare.setenv("MASTER_PORT", "2345")
    assert Placement.of_job().address == "tcp://10.0.0.1:2345"


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("login1", "login1"),
        ("login1,login2", "login1"),
        ("node[017-020,033],login1", "node017"),
        ("node[4,7-9]", "node4"),
        ("rack1-node[02-03]-ib,rack2", "rack1-node02-ib"),
        ("r[1-2]n[3-4]", "r1n3"),
    ],
)
def test_the_first_of_slurms_hosts(hosts: str, first: str) -> None:
    assert first_host(hosts) == first
