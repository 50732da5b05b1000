"""What every engine does around its own work."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from etalumis.execution import Observations, Simulator
from etalumis.inference.diagnostics import weight_advice
from etalumis.inference.posterior import Posterior
from etalumis.inference.progress import Progress

DEFAULT_TRACES = 1000
_LOG = logging.getLogger(__name__)


class Engine(Protocol):
    """An inference method with its settings; ``et.posterior`` runs it."""

    def run(
        self,
        model: Simulator,
        observe: Mapping[str, Any] | Observations | None,
        num_traces: int | None = None,
        seed: int = 0,
        progress: Progress = None,
    ) -> Posterior:
        """Infer; ``num_traces`` are kept in the end, over all chains."""
        ...


@runtime_checkable
class EventsEngine(Protocol):
    """An engine that infers from many observations better together than one by one."""

    def run_events(
        self,
        model: Simulator,
        events: Sequence[Mapping[str, Any] | Observations | None],
        num_traces: int | None = None,
        seed: int = 0,
        progress: Progress = None,
    ) -> list[Posterior]:
        """A posterior for each observation, ``num_traces`` each."""
        ...


def finish(
    posterior: Posterior,
    engine: str,
    model: Simulator,
    observations: Observations,
    seed: int,
    started: float,
    warnings: Sequence[str] = (),
) -> Posterior:
    """Say how a weighted posterior was made, and warn where its weights can't be trusted."""
    advice = weight_advice(posterior.log_weights, len(posterior) + posterior.num_dropped)
    kept = len(posterior) + posterior.num_dropped
    failed = posterior.info.setdefault("failed", posterior.info.get("executions", kept) - kept)
    lost = left_out(kept + failed, failed)
    posterior.info |= {
        "engine": engine,
        "model": model.name,
        "seed": seed,
        "observed": sorted(observations.values),
        "seconds": time.perf_counter() - started,
        "warnings": [*warnings, *lost, *([advice] if advice else [])],
    }
    warn(posterior)
    return posterior


def left_out(executions: int, failed: int) -> list[str]:
    """A warning where executions failed and a policy left them out."""
    if not failed:
        return []
    return [
        f"{failed} of {executions} executions failed and were left out: the result holds given that the "
        "simulator comes to its end"
    ]


def warn(posterior: Posterior) -> None:
    """Log what ``posterior.info["warnings"]`` lists (Python shows it on standard error unless told otherwise)."""
    for message in posterior.info.get("warnings", ()):
        _LOG.warning(message)
