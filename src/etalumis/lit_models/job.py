"""The ranks of one training: who speaks, how many cores each has, and how an error on one ends all."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from etalumis.callbacks.requests import Paused
from etalumis.conf.build import ConfigError, build
from etalumis.conf.tracebacks import shows_traceback
from etalumis.execution.pool import cores
from etalumis.strategies import Collective, RowStrategy, launched_ranks

_PATIENCE_S = 1.0  # an error that all ranks have is said by rank 0


@contextmanager
def job(settings: Mapping[str, Any] | None) -> Iterator[RowStrategy | None]:
    """The strategy of a training; None for one process.

    With several ranks, an error on one ends the whole job at once, where the others would wait for it for ever. A
    pause, to which all come together, leaves by :class:`Paused` on rank 0 and by SystemExit, silently, on others.

    Args:
        settings: the group ``strategy``.

    Raises:
        ConfigError: several ranks were launched, and the settings are of one.
        CollectiveError: the ranks don't find each other.
    """
    if not settings or not settings.get("_target_"):
        if launched_ranks() > 1:
            raise ConfigError(
                f"{launched_ranks()} ranks were launched, and each would train by itself: give strategy=mpi (mpirun, "
                "srun) or strategy=ddp_rows (torchrun)"
            )
        yield None
        return
    strategy: RowStrategy = build(settings)
    collective = strategy.collective
    try:
        yield strategy
        collective.barrier()
    except Paused as paused:
        collective.barrier()
        if not strategy.is_global_zero:
            raise SystemExit(paused.exit_code) from None
        raise
    except BaseException as error:
        end(collective, error)
        raise
    finally:
        collective.close()


def end(collective: Collective, error: BaseException) -> None:
    """End the job because of an error on this rank; returns where there are no other ranks."""
    if collective.world_size == 1:
        return
    if collective.rank:
        time.sleep(_PATIENCE_S)
    if isinstance(error, Exception) and shows_traceback(error, sys.argv):  # nothing is said after the end
        traceback.print_exception(error)
    collective.abort(str(error) or type(error).__name__)


def share_of_cores(collective: Collective) -> int:
    """Cores for this rank: those that it may use, shared with the ranks that may use the same ones."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    ours = json.dumps([socket.gethostname(), usable]).encode()
    return max(cores() // collective.all_gather_bytes(ours).count(ours), 1)
