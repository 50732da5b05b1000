"""Joining the gradients of ranks: one packed exchange of what is present against a sum of every tensor.

    python -m benchmarks.allreduce --json [--quick]

Two and four real ranks under ``mpirun`` on this machine. A network of 1,020 addresses (LSTM 512) with the paper's heads
of two layers per address; each rank has one sorted minibatch, all traces of one type with 17 controlled draws, another
type on each rank. Beside it: mixed minibatches, the default head, and one plain sum of as many bytes, which is the
floor. All ranks share this machine's memory: on a network, bytes count for more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import common
from benchmarks.common import Result, Settings

KINDS = 60  # of traces, of 17 addresses each
ROOT = Path(__file__).parents[1]
MPIRUN = Path(sys.executable).with_name("mpirun")
MPI_NAMES = (
    "packed_vs_per_tensor_2",
    "bytes_share",
    "packed_vs_plain_sum_2",
    "bf16_vs_float32_2",
    "packed_vs_per_tensor_2_mixed",
    "packed_vs_per_tensor_2_film",
)
NAMES = {2: MPI_NAMES, 4: ("packed_vs_per_tensor_4", "packed_vs_plain_sum_4")}


def results(settings: Settings) -> Iterator[Result]:
    for ranks, names in NAMES.items():
        if MPIRUN.exists():
            yield from over_mpi(ranks, settings)
        else:
            note = "no mpirun beside the interpreter: pip install 'etalumis[mpi]'"
            yield from (Result(name, None, None, None, None, "ms", 0, note) for name in names)
    if not settings.quick:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
        yield from launched(torchrun, "gloo", settings, KINDS)


def over_mpi(ranks: int, settings: Settings, kinds: int = KINDS) -> Iterator[Result]:
    launcher = [str(MPIRUN), "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
    return launched(launcher, "mpi", settings, kinds)


def launched(launcher: list[str], library: str, settings: Settings, kinds: int) -> Iterator[Result]:
    """What rank 0 of such a job measured."""
    command = [*launcher, sys.executable, "-m", "benchmarks.allreduce_ranks", library, f"--kinds={kinds}"]
    if settings.quick:
        command.append("--quick")
    environment = {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMP_NUM_THREADS": "1",
    }
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        yield from (Result(**json.loads(line)) for line in job.stdout)
    if job.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: its output says why")


if __name__ == "__main__":
    sys.exit(common.main("allreduce", results, pinned=False))
