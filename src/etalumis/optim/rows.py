"""Optimisers over dense parameters and bank rows together.

A row of a bank is treated as a parameter of its own that had no gradient in the steps that did not touch it: its
moments and its step count move only when a minibatch has its address. That equals the same optimiser over
separate modules whose gradient is None when untouched, and costs what was touched.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from etalumis.networks.banks import Bank, RowGrad, banks_of

LARC = ("none", "update", "gradient")
_EPS = 1e-8
_SMALL = 512  # numbers in a row up to which rows are gathered instead of updated one by one
STEP = "step"
_SCHEDULED = "initial_lr"  # what torch's schedules add to a group


class Touched(NamedTuple):
    """Tensors that one step changes, in parallel lists: dense parameters, and views of single large rows."""

    parameters: list[Tensor]
    gradients: list[Tensor]
    state: dict[str, list[Tensor]]


class Table(NamedTuple):
    """Small rows of one page, gathered: parameters, gradients and state are (n, numbers), step counts (n, 1)."""

    parameters: Tensor
    gradients: Tensor
    state: dict[str, Tensor]


class RowOptimizer(Optimizer):
    """What the optimisers share: finding what a step touches, LARC, and state dictionaries by name.

    Layer-wise adaptive rate control (You, Gitman and Ginsburg 2017; Mathuriya et al. 2018) limits the step of a
    layer with weights w to lr · r, r = min(trust · ‖w‖ / (‖u‖ + ε) / lr, 1), where u is the update
    (``larc="update"``) or the gradient (``larc="gradient"``); r = 1 where a norm is 0. A layer is one dense
    parameter, or one row of a bank: one address's matrix.

    Weight decay is decoupled (Loshchilov and Hutter 2019). Parameters and rows that a network gains by growing
    join by themselves.

    Args:
        network: whose parameters are optimised.
        defaults: hyper-parameters; lr, weight_decay, larc and trust among them.
        state_names: the tensors kept for each parameter, shaped like it, beside its step count.
    """

    def __init__(self, network: nn.Module, defaults: dict[str, Any], state_names: tuple[str, ...]) -> None:
        if defaults["larc"] not in LARC:
            raise ValueError(f"larc is one of {LARC}; got {defaults['larc']!r}")
        if not defaults["lr"] >= 0.0 or not defaults["weight_decay"] >= 0.0 or not defaults["trust"] > 0.0:
            raise ValueError(f"lr and weight_decay must be ≥ 0, trust > 0; got {defaults}")
        self._network = network
        self._state_names = state_names
        super().__init__([{"params": list(network.parameters())}], defaults)

    @property
    def network(self) -> nn.Module:
        return self._network

    @property
    def banks(self) -> dict[str, Bank]:
        """The network's banks by name."""
        return banks_of(self._network)

    def dense(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that are no pages of a bank, by name."""
        pages = {id(page) for bank in self.banks.values() for page in bank.pages}
        return ((name, p) for name, p in self._network.named_parameters() if id(p) not in pages)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear dense gradients and those of bank rows."""
        super().zero_grad(set_to_none)
        for bank in self.banks.values():
            bank.clear_gradient()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update what has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._join_new()
        group = self.param_groups[0]
        touched = self._touched()
        if touched.parameters:
            torch._foreach_add_(touched.state[STEP], 1.0)
            self._update(touched, group)
        for bank in self.banks.values():
            if bank.gradient is not None and _is_small(bank):
                self._update_small(bank, bank.gradient, group)
        return loss

    @abstractmethod
    def _update(self, touched: Touched, group: dict[str, Any]) -> None:
        """Change parameters and state; step counts are already increased."""

    @abstractmethod
    def _direction(self, table: Table, group: dict[str, Any]) -> Tensor:
        """Change the state of gathered rows, step counts already increased; returns the update u, (n, numbers)."""

    def _apply(self, touched: Touched, updates: list[Tensor], group: dict[str, Any]) -> None:
        """w ← w (1 − lr · weight_decay) − lr · r · u; ``updates`` may be overwritten."""
        if group["larc"] == "none":
            scales = [-float(group["lr"])] * len(updates)
        else:
            measured = updates if group["larc"] == "update" else touched.gradients
            weights = torch.stack(torch._foreach_norm(touched.parameters))
            scales = _rates(weights, torch.stack(torch._foreach_norm(measured)), group).neg().tolist()
        if group["weight_decay"]:
            torch._foreach_mul_(touched.parameters, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_mul_(updates, scales)
        torch._foreach_add_(touched.parameters, updates)

    def _update_small(self, bank: Bank, gradient: RowGrad, group: dict[str, Any]) -> None:
        """The same step for rows so small that a tensor operation each would cost more than the arithmetic."""
        ids, pages = gradient.ids, bank.pages
        number = torch.div(ids, bank.capacity, rounding_mode="floor")
        for page in torch.unique(number).tolist():
            here = torch.nonzero(number == page)[:, 0].to(gradient.rows.device)
            places = (ids - page * bank.capacity).to(here.device)[here]
            state = self._state_of(pages[page], bank.capacity)
            whole = {"parameters": pages[page], **state}
            flat = {name: tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None] for name, tensor in whole.items()}
            rows = {name: tensor.index_select(0, places) for name, tensor in flat.items()}
            weights = rows.pop("parameters")
            rows[STEP] += 1.0
            table = Table(weights, gradient.rows.index_select(0, here).flatten(1), rows)
            update = self._direction(table, group)
            lr: Any = group["lr"]
            if group["larc"] != "none":
                measured = update if group["larc"] == "update" else table.gradients
                lr = _rates(weights.norm(dim=1, keepdim=True), measured.norm(dim=1, keepdim=True), group)
            if group["weight_decay"]:
                weights.mul_(1.0 - group["lr"] * group["weight_decay"])
            weights.sub_(update.mul_(lr))
            for name, tensor in {"parameters": weights, **rows}.items():
                flat[name].index_copy_(0, places, tensor)

    # --- what a step touches ----------------------------------------------------------------------------------

    def _join_new(self) -> None:
        parameters = self.param_groups[0]["params"]
        if len(parameters) == sum(1 for _ in self._network.parameters()):
            return
        known = {id(p) for p in parameters}
        parameters.extend(p for p in self._network.parameters() if id(p) not in known)

    def _state_of(self, parameter: Tensor, rows: int | None = None) -> dict[str, Any]:
        """State of a dense parameter, or of a page of so many rows, each with a step count."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state[STEP] = torch.zeros(() if rows is None else (rows,), dtype=torch.float32, device=parameter.device)
            for name in self._state_names:
                state[name] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        return state

    def _touched(self) -> Touched:
        touched = Touched([], [], {name: [] for name in (STEP, *self._state_names)})
        for _, parameter in self.dense():
            if parameter.grad is not None:
                touched.parameters.append(parameter)
                touched.gradients.append(parameter.grad)
                state = self._state_of(parameter)
                for name, tensors in touched.state.items():
                    tensors.append(state[name])
        for bank in self.banks.values():
            if bank.gradient is None or _is_small(bank):
                continue
            touched.gradients.extend(bank.gradient.rows.unbind(0))
            pages = bank.pages
            for page, places in _by_page(bank.gradient.ids.tolist(), bank.capacity):
                touched.parameters.extend(_views(pages[page].detach(), places))
                state = self._state_of(pages[page], bank.capacity)
                for name, tensors in touched.state.items():
                    tensors.extend(_views(state[name], places))
        return touched

    # --- state dictionaries -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Hyper-parameters, and state by parameter name; of a bank, the used rows as one tensor."""
        self._join_new()
        state: dict[str, dict[str, Tensor]] = {
            name: dict(self.state[p]) for name, p in self.dense() if self.state.get(p)
        }
        for name, bank in self.banks.items():
            pages = [self._state_of(page, bank.capacity) for page in bank.pages if self.state.get(page)]
            if pages:
                pages = [self._state_of(page, bank.capacity) for page in bank.pages]
                state[name] = {k: torch.cat([page[k] for page in pages])[: bank.used].clone() for k in pages[0]}
        settings = {key: value for key, value in self.param_groups[0].items() if key != "params"}
        return {"state": state, "param_groups": [settings]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; rows that have been added since start anew.

        Hyper-parameters stay those that the optimiser was made with; the learning rate of a schedule is taken over.

        Raises:
            ValueError: where the state is of another network or another optimiser.
        """
        self._join_new()
        if _SCHEDULED in self.param_groups[0]:
            self.param_groups[0]["lr"] = state_dict["param_groups"][0]["lr"]
        self.state.clear()
        dense, banks = dict(self.dense()), self.banks
        for name, stored in state_dict["state"].items():
            if (name not in dense and name not in banks) or set(stored) != {STEP, *self._state_names}:
                raise ValueError(
                    f"the optimiser state of {name!r} does not fit: it is of another network or optimiser "
                    f"(kept here: {(STEP, *self._state_names)})"
                )
            if name in dense:
                _copy(self._state_of(dense[name]), stored, name)
                continue
            bank = banks[name]
            for number, page in enumerate(bank.pages):
                start = number * bank.capacity
                piece = {key: value[start : start + bank.capacity] for key, value in stored.items()}
                count = len(piece[STEP])
                state = self._state_of(page, bank.capacity)
                _copy({key: value[:count] for key, value in state.items()}, piece, name)


def _is_small(bank: Bank) -> bool:
    return math.prod(bank.shape) <= _SMALL


def _rates(weights: Tensor, measured: Tensor, group: dict[str, Any]) -> Tensor:
    """lr · r of each layer from the norms of its weights and of what LARC measures."""
    limit = group["trust"] * weights / (measured + _EPS)
    return torch.where((weights == 0.0) | (measured == 0.0), math.inf, limit).clamp_max(float(group["lr"]))


def _copy(target: Mapping[str, Tensor], source: Mapping[str, Tensor], name: str) -> None:
    for key, tensor in target.items():
        if tensor.shape != source[key].shape:
            raise ValueError(f"the optimiser state of {name!r} has shape {tuple(source[key].shape)}: another network")
        tensor.copy_(source[key])


def _by_page(ids: list[int], capacity: int) -> Iterator[tuple[int, list[int]]]:
    """Runs of ids that stand on one page, in the order given."""
    run: list[int] = []
    current = -1
    for number in ids:
        page, place = divmod(number, capacity)
        if page != current and run:
            yield current, run
            run = []
        current = page
        run.append(place)
    if run:
        yield current, run


def _views(tensor: Tensor, places: list[int]) -> list[Tensor]:
    if 4 * len(places) < len(tensor):
        return [tensor[place] for place in places]
    rows = tensor.unbind(0)
    return [rows[place] for place in places]
