"""What resampled samples remember of the weights that they had: equal ones look certain, whatever they hide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_KEY = "resampled"


class Origin(NamedTuple):
    """How far the weights could be trusted.

    Attributes:
        traces: that were weighed.
        pareto_k: k̂ of their weights.
        log_evidence_error: Monte-Carlo standard error of the log evidence.
    """

    traces: int
    pareto_k: float
    log_evidence_error: float

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Origin | None:
        """What a posterior's ``info`` tells; None where its samples were not resampled."""
        told = info.get(_KEY)
        if told is None:
            return None
        return cls(told["traces"], float(told["pareto_k"]), told["log_evidence_error"])

    def as_info(self) -> dict[str, Any]:
        """An entry for ``info``."""
        # As text, because k̂ may be infinite or not a number, which JSON can't say.
        return {_KEY: self._asdict() | {"pareto_k": str(self.pareto_k)}}
