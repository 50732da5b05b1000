"""Freed memory that is kept for the next allocation."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from etalumis.networks.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(16 << 20)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
kept = keep_freed_memory()
torch.ones(16 << 20)
print(kept, first, min(faults() for _ in range(3)))  # the system may take pages back for reasons of its own
"""


def run(**variables: str) -> tuple[str, int, int]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC", "LD_P"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment | variables, capture_output=True, text=True, check=True
    )
    kept, first, second = done.stdout.split()
    return kept, int(first), int(second)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_kept_memory_is_not_cleared_again() -> None:
    kept, before, after = run()
    if kept == "False":
        pytest.skip("another C library")
    assert after < before / 10


def test_what_the_environment_chooses_stays() -> None:
    assert run(MALLOC_ARENA_MAX="2")[0] == "False"
