"""The ranks of one training: who speaks, who hears signals, and how an error on one ends all."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector

from etalumis.callbacks.requests import Paused
from etalumis.conf.build import ConfigError, build
from etalumis.conf.tracebacks import shows_traceback
from etalumis.strategies import Collective, RowStrategy, launched_ranks

_PATIENCE_S = 1.0  # an error that all ranks have is said by rank 0
_FIRST_PATIENCE_S = 5.0  # before the first step most are, and ranks may be far apart


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
    if collective.world_size == 1:
        sys.stderr.write("train: on one rank; a launcher starts more, as mpirun -n 4 or torchrun --nproc-per-node 4\n")
    paused: Paused | None = None
    try:
        try:
            yield strategy
        except Paused as pause:
            paused = pause
        collective.barrier()
    except BaseException as error:
        end(collective, error, _PATIENCE_S if strategy.exchanged else _FIRST_PATIENCE_S)
        raise
    finally:
        collective.close()
    if paused is None:
        return
    if not strategy.is_global_zero:
        time.sleep(_PATIENCE_S)  # launchers end all ranks when one leaves with an error code: rank 0 speaks first
        raise SystemExit(128 + signal.SIGINT if paused.signal == signal.SIGINT else paused.exit_code)
    raise paused


class LeaveSignals(_SignalConnector):
    """Of Lightning's trainer: hears no signals, which are a whole job's and not only those of one call of it.

    Lightning's own answers SIGTERM by a collective within the handler, which ranks that are elsewhere don't join.
    """

    def register_signal_handlers(self) -> None:
        self.received_sigterm = False
        self._original_handlers = self._get_current_signal_handlers()  # it ignores Ctrl-C for a while


def alone(what: str) -> None:
    """Refuse several ranks for what one process does.

    Raises:
        ConfigError: several were launched.
    """
    if launched_ranks() > 1:
        raise ConfigError(
            f"{what} runs in one process, and {launched_ranks()} ranks were launched: start it without mpirun, srun "
            "and torchrun"
        )


def end(collective: Collective, error: BaseException, patience: float = _PATIENCE_S) -> None:
    """End the job because of an error on this rank; returns where there are no other ranks.

    Args:
        collective: the ranks.
        error: what went wrong.
        patience: seconds that ranks but the first wait for it to say the same.
    """
    if collective.world_size == 1:
        return
    if collective.rank:
        time.sleep(patience)
    if isinstance(error, Exception) and shows_traceback(error, sys.argv):  # nothing is said after the end
        traceback.print_exception(error)
    collective.abort(str(error) or type(error).__name__)
