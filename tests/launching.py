"""Starting programs on several ranks, as users do: mpirun of the mpi extra, torchrun."""

import atexit
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

MPIRUN = Path(sys.executable).with_name("mpirun")
ENVIRONMENT = {
    **os.environ,
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMP_NUM_THREADS": "1",
}

# A killed mpirun leaves its session folder behind, named after its process; a later one that is given the same process
# number finds the file and ends with "listener thread failed to start". So each has a place of its own.
_SESSIONS = tempfile.mkdtemp(prefix="mpirun-")
atexit.register(shutil.rmtree, _SESSIONS, ignore_errors=True)
_NUMBERS = itertools.count()


def needs_mpi() -> None:
    pytest.importorskip("mpi4py", reason="pip install 'etalumis[mpi]'")
    if not MPIRUN.exists():
        pytest.skip("no mpirun beside the interpreter: pip install 'etalumis[mpi]'")


def mpirun(ranks: int) -> list[str]:
    """The words before a program's."""
    own = ["--prtemca", "prte_tmpdir_base", f"{_SESSIONS}/{next(_NUMBERS)}"]
    return [str(MPIRUN), "--oversubscribe", "--bind-to", "none", *own, "-n", str(ranks), sys.executable]


def torchrun(ranks: int) -> list[str]:
    """The words before a program's; each run finds a free port."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


def run(
    words: Sequence[str | Path], code: int | None = 0, timeout: float = 150.0, cwd: str | Path | None = None
) -> str:
    """What a command says; an exit code of None is any but 0."""
    done = subprocess.run(
        [str(word) for word in words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        cwd=cwd,
    )
    said = done.stdout + done.stderr
    assert (done.returncode == code) if code is not None else done.returncode, said
    return said
