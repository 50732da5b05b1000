"""Joining the gradients of several minibatches to one step, each by its number of traces."""

from __future__ import annotations

import torch

from etalumis.optim.rows import RowOptimizer


class Accumulation:
    """Makes the gradient of an iteration Σ n_r g_r / Σ n_r, where part r has n_r traces and mean gradient g_r.

    Averaging the parts' means, as trainers do, gives the traces of small parts too much weight. Here the backward pass
    of each part is weighted by its traces relative to the first part's; what is missing then is one factor, known
    when all parts are there. It is 1 for parts of one size, and costs a pass over the gradients otherwise.

    Attributes:
        traces: behind the gradients at hand.
    """

    def __init__(self) -> None:
        self.traces = 0
        self._first = 0

    def start(self) -> None:
        """Forget what came before."""
        self.traces = self._first = 0

    def add(self, traces: int) -> float:
        """Count a part; returns the weight of its mean loss."""
        if not self.traces:
            self._first = max(traces, 1)
        self.traces += traces
        return traces / self._first

    def factor(self, parts: int) -> float:
        """What completes gradients of losses that were divided by ``parts``, however many came."""
        return parts * self._first / self.traces if self.traces else 1.0

    @torch.no_grad()
    def finish(self, optimizer: RowOptimizer, parts: int) -> None:
        """Before the step: complete gradients of losses that were divided by ``parts``."""
        factor = self.factor(parts)
        self.start()
        gradients = optimizer.parts.gradients() if factor != 1.0 else []
        if gradients:
            torch._foreach_mul_(gradients, factor)
