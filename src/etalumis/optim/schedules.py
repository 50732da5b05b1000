"""Learning-rate schedules, stepped once per iteration."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Schedule(LRScheduler):
    """A learning rate that depends on the iteration alone.

    A state dictionary holds the iteration only. What is gone on with follows the arguments, so that a longer training,
    or one with another learning rate, gets the schedule it asks for.
    """

    @abstractmethod
    def rate(self, base: float | Tensor) -> float | Tensor:
        """The learning rate at iteration ``last_epoch``, from the one the optimiser was made with."""

    def get_lr(self) -> list[float | Tensor]:
        return [self.rate(base) for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The iteration."""
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from an iteration, with the learning rate that the arguments give it."""
        self.go_on_from(state_dict["last_epoch"], state_dict["_step_count"])

    def go_on_from(self, iteration: int, step_count: int | None = None) -> None:
        """Take the learning rate of an iteration.

        Args:
            iteration: how many steps the optimiser has made.
            step_count: what torch counts; None for that of a schedule that has gone with them all.
        """
        self.last_epoch, self._step_count = iteration, iteration + 1 if step_count is None else step_count
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class PolynomialDecay(Schedule):
    """lr(i) = end_lr + (lr − end_lr) (1 − i / iterations)^power, then end_lr.

    Args:
        optimizer: whose learning rate it sets.
        iterations: after how many it ends.
        power: 1 or 2 in the paper.
        end_lr: the last learning rate.
        last_epoch: the iteration to go on from; −1 starts.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        iterations: int,
        power: float = 2.0,
        end_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if iterations < 1 or not power > 0.0 or not end_lr >= 0.0:
            raise ValueError(
                f"a decay needs iterations ≥ 1, power > 0 and end_lr ≥ 0; got {iterations}, {power}, {end_lr}"
            )
        self.iterations, self.power, self.end_lr = iterations, power, end_lr
        super().__init__(optimizer, last_epoch)

    def rate(self, base: float | Tensor) -> float | Tensor:
        left: float = max(0.0, 1.0 - self.last_epoch / self.iterations) ** self.power
        return self.end_lr + (base - self.end_lr) * left


class MultiStep(Schedule):
    """lr(i) = lr · gammaᵏ, where k milestones have been reached at iteration i.

    Args:
        optimizer: whose learning rate it sets.
        iterations: of the whole training.
        milestones: when, rising, as shares of the training above 0 and below 1.
        gamma: what the learning rate is multiplied with at each.
        last_epoch: the iteration to go on from; −1 starts.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        iterations: int,
        milestones: Sequence[float] = (0.5, 0.75),
        gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        if iterations < 1 or not gamma > 0.0:
            raise ValueError(f"a multi-step schedule needs iterations ≥ 1 and gamma > 0; got {iterations}, {gamma}")
        if list(milestones) != sorted(set(milestones)) or not all(0.0 < m < 1.0 for m in milestones):
            raise ValueError(
                "milestones are shares of the training, rising, above 0 and below 1, as [0.5,0.75]; "
                f"got {list(milestones)}"
            )
        self.milestones = [round(share * iterations) for share in milestones]
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, base: float | Tensor) -> float | Tensor:
        return base * self.gamma ** sum(self.last_epoch >= milestone for milestone in self.milestones)
