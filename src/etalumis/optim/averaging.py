"""An exponential moving average of the weights that costs only what a step touches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from etalumis.networks.banks import Bank
from etalumis.optim.parts import Places, gather, is_small, scatter
from etalumis.optim.rows import RowOptimizer


class AverageModel:
    """The mean of the weights after each step: average ← d · average + (1 − d) · weights, from the first weights on.

    Weights w that do not move pull their average to them: after k steps it is w + (average − w) dᵏ. So the average of
    a parameter, or of a row of a bank, is brought up to date just before a step changes it, and when it is read. That
    equals the average of everything in every step. Rows that no step has touched are their own average.

    Attach it by ``optimizer.before_update.append(average.update)``.

    Args:
        optimizer: whose network is averaged; it may grow.
        decay: d, above 0 and below 1.
        warm_up: with d limited to (1 + t) / (10 + t) at step t, so that the first weights are soon forgotten.

    Attributes:
        swapped: whether the network has the averaged weights; see :meth:`swap`.
    """

    def __init__(self, optimizer: RowOptimizer, decay: float, warm_up: bool = True) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"the decay of averaged weights must be above 0 and below 1; got {decay}")
        self.decay, self.warm_up = decay, warm_up
        self.steps = 0
        self.swapped = False
        self._optimizer = optimizer
        self._log_decay = 0.0  # sum of log d over all steps
        self._dense: dict[str, Tensor] = {}
        self._dense_since: dict[str, float] = {}
        self._pages: dict[str, dict[int, Tensor]] = {}
        # Sum of log d at which the averages stand, (rows,), float64; NaN where a row is its own average.
        self._since: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Count a step that is about to be made with the gradients at hand."""
        assert not self.swapped, "the network has its averaged weights, which no step may change"
        parts = self._optimizer.parts
        for name, parameter in parts.dense.items():
            if parameter.grad is not None:
                self._average(name, parameter)
        for name, bank in parts.banks.items():
            if bank.gradient is not None:
                self._average_rows(name, bank, bank.gradient.ids)
        self.steps += 1
        limit = (1.0 + self.steps) / (10.0 + self.steps) if self.warm_up else 1.0
        decay = min(self.decay, limit)
        self._log_decay += math.log(decay)

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring every average up to date."""
        parts = self._optimizer.parts
        for name in self._dense:
            self._average(name, parts.dense[name])
        for name, since in self._since.items():
            late = torch.nonzero(since > self._log_decay)[:, 0]
            self._average_rows(name, parts.banks[name], late)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's weights and their averages, in place."""
        if not self.swapped:
            self.refresh()
        self.swapped = not self.swapped
        parts = self._optimizer.parts
        for name, average in self._dense.items():
            _exchange(parts.dense[name].detach(), average)
        for name, pages in self._pages.items():
            capacity = parts.banks[name].capacity
            for page, average in pages.items():
                met = ~self._since[name][page * capacity : (page + 1) * capacity].isnan()
                rows = torch.nonzero(met)[:, 0].to(average.device)
                weights = parts.pages[name][page].detach()
                kept = weights.index_select(0, rows)
                weights.index_copy_(0, rows, average.index_select(0, rows))
                average.index_copy_(0, rows, kept)

    # --- state ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers: averages by parameter name, and of each bank those of rows that steps have touched.

        :func:`etalumis.networks.checkpoint.load` reads ``dense`` and ``rows``.
        """
        assert not self.swapped, "what would be saved as averages are the weights"
        self.refresh()
        rows = {}
        for name, ids, places in self._met():
            pages = self._pages[name]
            first = next(iter(pages.values()))
            whole = [pages.get(page, first) for page in range(max(pages) + 1)]  # only pages in ``places`` are read
            table = gather(whole, self._optimizer.parts.banks[name].capacity, places)
            rows[name] = {"ids": ids, "rows": table.view(len(ids), *first.shape[1:])}
        dense = {name: average.clone() for name, average in self._dense.items()}
        return {"steps": self.steps, "log_decay": self._log_decay, "dense": dense, "rows": rows}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        parts = self._optimizer.parts
        self.steps, self._log_decay = state["steps"], state["log_decay"]
        self._dense = {name: average.to(parts.dense[name].device).clone() for name, average in state["dense"].items()}
        self._dense_since = dict.fromkeys(self._dense, self._log_decay)
        self._pages, self._since = {}, {}
        for name, stored in state["rows"].items():
            bank = parts.banks[name]
            places = Places.of(stored["ids"], bank.capacity)
            pages = [self._page(name, page) for page, _, _ in places.runs]
            whole = [self._pages[name].get(page, pages[0]) for page in range(max(self._pages[name]) + 1)]
            scatter(whole, bank.capacity, places, stored["rows"].to(pages[0].device).flatten(1))
            self._stand(name)[stored["ids"]] = self._log_decay

    def _met(self) -> Iterator[tuple[str, Tensor, Places]]:
        for name, since in self._since.items():
            ids = torch.nonzero(~since.isnan())[:, 0]
            if len(ids):
                yield name, ids, Places.of(ids, self._optimizer.parts.banks[name].capacity)

    # --- bringing up to date ----------------------------------------------------------------------------------

    def _average(self, name: str, parameter: Tensor) -> None:
        if name not in self._dense:
            self._dense[name] = parameter.detach().clone()
        elif self._dense_since[name] > self._log_decay:
            self._dense[name].lerp_(parameter.detach(), -math.expm1(self._log_decay - self._dense_since[name]))
        self._dense_since[name] = self._log_decay

    def _average_rows(self, name: str, bank: Bank, ids: Tensor) -> None:
        if not len(ids):
            return
        since, places = self._stand(name), Places.of(ids, bank.capacity)
        # 1 where the row is its own average so far
        share = (-torch.expm1(self._log_decay - since[places.ids])).nan_to_num_(1.0)
        since[places.ids] = self._log_decay
        pages = self._optimizer.parts.pages[name]
        for page, here, part in places.on_pages(bank.capacity, pages[0].device):
            average, weights = self._page(name, page), pages[page].detach()
            if is_small(bank):
                flat, weights = average.flatten(1), weights.flatten(1).index_select(0, here)
                pull = share[part, None].to(weights)
                flat.index_copy_(0, here, flat.index_select(0, here).lerp_(weights, pull))
            else:
                for place, pull in zip(here.tolist(), share[part].tolist(), strict=True):
                    average[place].lerp_(weights[place], pull)

    def _page(self, name: str, page: int) -> Tensor:
        pages = self._pages.setdefault(name, {})
        if page not in pages:
            pages[page] = torch.zeros_like(self._optimizer.parts.pages[name][page])
        return pages[page]

    def _stand(self, name: str) -> Tensor:
        """Where the averages of a bank's rows stand, made as long as its pages are."""
        parts = self._optimizer.parts
        rows = parts.banks[name].capacity * len(parts.pages[name])
        since = self._since.get(name, torch.empty(0, dtype=torch.float64))
        if len(since) < rows:
            since = self._since[name] = torch.cat([since, since.new_full((rows - len(since),), math.nan)])
        return since


def _exchange(one: Tensor, other: Tensor) -> None:
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)
