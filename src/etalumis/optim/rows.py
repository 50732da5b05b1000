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

from etalumis.networks.banks import Bank, RowGrad
from etalumis.optim.parts import Parts, Places, gather, is_small, scatter

LARC = ("none", "update", "gradient")
_EPS = 1e-8
_BLOCK = 1 << 19  # numbers updated together on a CPU, so that what is computed on the way stays in its cache
STEP = "step"
_SCHEDULED = "initial_lr"  # what torch's schedules add to a group


class Touched(NamedTuple):
    """Tensors that one step changes, in parallel lists: dense parameters, and views of single large rows."""

    parameters: list[Tensor]
    gradients: list[Tensor]
    state: dict[str, list[Tensor]]

    def blocks(self) -> Iterator[Touched]:
        """The same in pieces that fit a cache; whole where the device is no CPU."""
        if not self.parameters:
            return
        if self.parameters[0].device.type != "cpu":
            yield self
            return
        start = size = 0
        for end, parameter in enumerate(self.parameters, 1):
            size += parameter.numel()
            if size >= _BLOCK or end == len(self.parameters):
                part = slice(start, end)
                state = {name: tensors[part] for name, tensors in self.state.items()}
                yield Touched(self.parameters[part], self.gradients[part], state)
                start, size = end, 0


class Table(NamedTuple):
    """Small rows, gathered: parameters, gradients and state are (n, numbers), step counts (n, 1)."""

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
        self._parts = Parts(network)
        self._state_names = state_names
        # Called in each step when the gradients are there and nothing has been changed yet.
        self.before_update: list[Callable[[], None]] = []
        super().__init__([{"params": list(network.parameters())}], defaults)

    @property
    def network(self) -> nn.Module:
        return self._parts.network

    @property
    def parts(self) -> Parts:
        """The network's dense parameters and banks, those that it has gained among them."""
        if self._parts.refresh():
            parameters = self.param_groups[0]["params"]
            known = {id(p) for p in parameters}
            parameters.extend(p for p in self.network.parameters() if id(p) not in known)
        return self._parts

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear dense gradients and those of bank rows."""
        for parameter in self.parts.dense.values():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad = torch.zeros_like(parameter.grad)
        for bank in self._parts.banks.values():
            bank.clear_gradient()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update what has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for call in self.before_update:
            call()
        group = self.param_groups[0]
        for part in self._touched().blocks():
            self._update(part, group)
        for name, bank in self._parts.banks.items():
            if bank.gradient is not None and is_small(bank):
                self._update_small(name, bank.gradient, group)
        return loss

    @abstractmethod
    def _update(self, touched: Touched, group: dict[str, Any]) -> None:
        """Change parameters and state; step counts are already increased."""

    @abstractmethod
    def _direction(self, table: Table, group: dict[str, Any]) -> Tensor:
        """Change the state of gathered rows, step counts already increased; returns the update u, (n, numbers)."""

    def _apply(self, touched: Touched, updates: list[Tensor], group: dict[str, Any]) -> None:
        """w ← w (1 − lr · weight_decay) − lr · r · u; ``updates`` is overwritten."""
        measured = touched.gradients if group["larc"] == "gradient" else updates
        weights = torch.stack(torch._foreach_norm(touched.parameters))
        rates = _rates(weights, torch.stack(torch._foreach_norm(measured)), group)
        if group["weight_decay"]:
            torch._foreach_mul_(touched.parameters, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_mul_(updates, rates.tolist())
        torch._foreach_sub_(touched.parameters, updates)

    def _update_small(self, name: str, gradient: RowGrad, group: dict[str, Any]) -> None:
        """The same step for rows so small that a tensor operation each would cost more than the arithmetic."""
        bank, pages = self._parts.banks[name], [page.detach() for page in self._parts.pages[name]]
        places = Places.of(gradient.ids, bank.capacity)
        weights = gather(pages, bank.capacity, places)
        state, ids = {STEP: self._steps(name), **self._moments(name)}, places.ids.to(weights.device)
        flat = {key: tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None] for key, tensor in state.items()}
        rows = {key: tensor.index_select(0, ids) for key, tensor in flat.items()}
        rows[STEP] += 1.0
        table = Table(weights, places.sorted(gradient.rows).flatten(1), rows)
        update = self._direction(table, group)
        lr: Any = group["lr"]
        if group["larc"] != "none":
            measured = update if group["larc"] == "update" else table.gradients
            lr = _rates(weights.norm(dim=1, keepdim=True), measured.norm(dim=1, keepdim=True), group)
        if group["weight_decay"]:
            weights.mul_(1.0 - group["lr"] * group["weight_decay"])
        weights.sub_(update.mul_(lr))
        scatter(pages, bank.capacity, places, weights)
        for key, tensor in rows.items():
            flat[key].index_copy_(0, ids, tensor)

    # --- what a step touches ----------------------------------------------------------------------------------

    def _touched(self) -> Touched:
        """The dense parameters and large rows that have a gradient; their step counts are increased here."""
        touched = Touched([], [], {name: [] for name in (STEP, *self._state_names)})
        for parameter in self.parts.dense.values():
            if parameter.grad is not None:
                touched.parameters.append(parameter)
                touched.gradients.append(parameter.grad)
                state = self._state_of(parameter)
                state[STEP] += 1.0
                for name, tensors in touched.state.items():
                    tensors.append(state[name])
        for name, bank in self._parts.banks.items():
            if bank.gradient is not None and not is_small(bank):
                self._touch_rows(name, bank, bank.gradient, touched)
        return touched

    def _touch_rows(self, name: str, bank: Bank, gradient: RowGrad, touched: Touched) -> None:
        pages, counts = self._parts.pages[name], self._steps(name)
        places = Places.of(gradient.ids, bank.capacity)
        ids = places.ids.to(gradient.rows.device)
        steps = counts.index_select(0, ids) + 1.0
        counts.index_copy_(0, ids, steps)
        touched.state[STEP].extend(steps.unbind(0))
        rows = gradient.rows.unbind(0)
        touched.gradients.extend(rows if places.order is None else [rows[k] for k in places.order.tolist()])
        numbers = (places.ids % bank.capacity).tolist()
        for page, start, end in places.runs:
            here = numbers[start:end]
            touched.parameters.extend([pages[page][place] for place in here])
            for key, moments in self._moments(name, page).items():
                touched.state[key].extend([moments[place] for place in here])

    # --- state ------------------------------------------------------------------------------------------------

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        """State of a dense parameter."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state[STEP] = parameter.new_zeros((), dtype=torch.float32)
            state.update({name: torch.zeros_like(parameter) for name in self._state_names})
        return state

    def _steps(self, name: str) -> Tensor:
        """Step counts of a bank's rows, (rows,), kept with its first page."""
        pages = self._parts.pages[name]
        rows, state = self._parts.banks[name].capacity * len(pages), self.state[pages[0]]
        counts: Tensor = state.get(STEP, pages[0].new_zeros(0, dtype=torch.float32))
        if len(counts) < rows:
            counts = state[STEP] = torch.cat([counts, counts.new_zeros(rows - len(counts))])
        return counts

    def _moments(self, name: str, page: int = 0) -> dict[str, Tensor]:
        """The other state of the rows of a page; where rows are small, of all pages, kept with the first."""
        bank, pages = self._parts.banks[name], self._parts.pages[name]
        state, parameter = self.state[pages[page]], pages[page]
        if is_small(bank):
            rows = bank.capacity * len(pages)
            for key in self._state_names:
                table = state.get(key, parameter.new_zeros((0, *bank.shape)))
                if len(table) < rows:
                    state[key] = torch.cat([table, table.new_zeros((rows - len(table), *bank.shape))])
        elif self._state_names[0] not in state:
            state.update({key: torch.zeros_like(parameter) for key in self._state_names})
        return {key: state[key] for key in self._state_names}

    # --- state dictionaries -----------------------------------------------------------------------------------

    def _tables(self, name: str) -> list[dict[str, Tensor]]:
        """The moments of all rows of a bank, in pieces."""
        bank = self._parts.banks[name]
        return [self._moments(name, page) for page in range(1 if is_small(bank) else len(self._parts.pages[name]))]

    def state_dict(self) -> dict[str, Any]:
        """Hyper-parameters, and state by parameter name; of a bank, the used rows as one tensor."""
        parts = self.parts
        state: dict[str, dict[str, Tensor]] = {
            name: dict(self.state[p]) for name, p in parts.dense.items() if self.state.get(p)
        }
        for name, bank in parts.banks.items():
            if any(self.state.get(page) for page in parts.pages[name]):
                tables = self._tables(name)
                whole = {key: torch.cat([table[key] for table in tables]) for key in self._state_names}
                state[name] = {k: v[: bank.used].clone() for k, v in {STEP: self._steps(name), **whole}.items()}
        settings = {key: value for key, value in self.param_groups[0].items() if key != "params"}
        return {"state": state, "param_groups": [settings]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; rows that have been added since start anew.

        Hyper-parameters stay those that the optimiser was made with; the learning rate of a schedule is taken over.

        Raises:
            ValueError: where the state is of another network or another optimiser.
        """
        if _SCHEDULED in self.param_groups[0]:
            self.param_groups[0]["lr"] = state_dict["param_groups"][0]["lr"]
        self.state.clear()
        parts = self.parts
        for name, stored in state_dict["state"].items():
            if (name not in parts.dense and name not in parts.banks) or set(stored) != {STEP, *self._state_names}:
                raise ValueError(
                    f"the optimiser state of {name!r} does not fit: it is of another network or optimiser "
                    f"(kept here: {(STEP, *self._state_names)})"
                )
            if name in parts.dense:
                _copy(self._state_of(parts.dense[name]), stored, name)
                continue
            count, tables = len(stored[STEP]), self._tables(name)
            _copy({STEP: self._steps(name)[:count]}, {STEP: stored[STEP]}, name)
            for key in self._state_names:
                start = 0
                for table in tables:
                    piece = stored[key][start : start + len(table[key])]
                    start += len(table[key])
                    _copy({key: table[key][: len(piece)]}, {key: piece}, name)


def _rates(weights: Tensor, measured: Tensor, group: dict[str, Any]) -> Tensor:
    """lr · r of each layer from the norms of its weights and of what LARC measures."""
    limit = group["trust"] * weights / (measured + _EPS)
    return torch.where((weights == 0.0) | (measured == 0.0), math.inf, limit).clamp_max(float(group["lr"]))


def _copy(target: Mapping[str, Tensor], source: Mapping[str, Tensor], name: str) -> None:
    for key, tensor in target.items():
        if tensor.shape != source[key].shape:
            raise ValueError(f"the optimiser state of {name!r} has shape {tuple(source[key].shape)}: another network")
        tensor.copy_(source[key])
