"""Where the time of training goes: traces per second, phases, and how evenly ranks are loaded."""

from __future__ import annotations

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from etalumis.callbacks import phases
from etalumis.callbacks.phases import PHASES, WORK, PhaseClock


class Balance(Callback):
    """Times the phases of each iteration (:data:`.PHASES`) on each rank, and logs what they add up to.

    At every ``trainer.log_every_n_steps`` iterations, over those since the last time:

    - ``throughput/traces_per_s`` of all ranks, and ``throughput/wait_share``, the share of time without a minibatch;
    - ``phases/NAME_s``: seconds of each phase to an iteration, the mean over ranks;
    - ``ranks/NAME_s``: the same of each rank, as a tensor (ranks,), which ``etalumis balance`` draws;
    - with several ranks ``balance/actual_s`` and ``balance/best_s`` of an iteration, ``balance/imbalance``, the first
      over the second less 1, and ``balance/imbalance_NAME`` of each phase of work: see :class:`.phases.Balance`.

    Several ranks put their times together by one small collective. Validation does not count. Figures of the whole
    training, with those before it was gone on with, are attributes.

    Attributes:
        traces: of all training steps and ranks so far.
        seconds: of all training steps.
        waited: of these, without a minibatch, on this rank.
        actual, best: seconds of all iterations as they were, and if no rank had waited for another.
    """

    def __init__(self) -> None:
        self.traces = 0
        self.seconds = self.waited = self.actual = self.best = 0.0
        self._since = (0, 0.0)
        self._ended = self._waited = self._waited_before = 0.0
        self._minibatch = 0  # traces of this rank in the iteration

    @property
    def rate(self) -> float:
        """Traces per second over the whole run."""
        return self.traces / self.seconds if self.seconds else 0.0

    @property
    def imbalance(self) -> float:
        """By how much iterations were longer than if no rank had waited for another, as a share."""
        return self.actual / self.best - 1.0 if self.best else 0.0

    # --- timing ---------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._clock = PhaseClock(module.device)
        self._collective = getattr(trainer.strategy, "collective", None)
        self._begin()  # epochs that are gone on with in the middle do not start again

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._begin()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._begin()

    def _begin(self) -> None:
        """What was since the last iteration does not count."""
        self._clock.forget()
        self._ended = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, number: int) -> None:
        self._clock.enter(phases.FORWARD)

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Any) -> None:
        self._clock.enter(phases.BACKWARD)

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        exchanges = self._collective is not None and not trainer.fit_loop._should_accumulate()
        self._clock.enter(phases.EXCHANGE if exchanges else phases.OPTIMISE)

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        self._clock.enter(phases.OPTIMISE)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        self._clock.enter(phases.OTHER)
        now = time.perf_counter()
        self.seconds += now - self._ended
        self._ended = now
        self._minibatch += batch.num_traces
        if trainer.fit_loop._should_accumulate():
            return
        exchanged = None if self._collective is None else trainer.strategy.exchanged  # type: ignore[attr-defined]
        self.traces += self._minibatch if exchanged is None else exchanged.traces
        self._minibatch = 0
        waited = getattr(trainer.train_dataloader, "waited", 0.0)
        self._clock.close(waited - self._waited, 0.0 if exchanged is None else exchanged.waiting)
        self._waited = waited
        self.waited = self._waited_before + waited
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by one of its connectors
        if every and trainer.global_step % every == 0:
            self._log(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._clock.iterations:
            self._log(trainer)

    # --- what it adds up to ---------------------------------------------------------------------------------------

    def _log(self, trainer: Trainer, module: LightningModule | None = None) -> None:
        """Log the iterations since the last time; without ``module`` where it can't log."""
        table = self._clock.take().float()
        if self._collective is None:
            found = phases.Balance.of(table[None])
        else:
            self._clock.enter(phases.WAITING)
            found = phases.Balance.of(self._collective.all_gather(table))
            self._clock.enter(phases.OTHER)
        self.actual += found.actual * len(table)
        self.best += found.best * len(table)
        traces, seconds = self._since
        self._since = (self.traces, self.seconds)
        rate = (self.traces - traces) / (self.seconds - seconds)
        means = dict(zip(PHASES, found.phases.mean(0).tolist(), strict=True))
        metrics = {"throughput/traces_per_s": rate, "throughput/wait_share": means[phases.READ] / found.actual}
        metrics |= {f"phases/{name}_s": mean for name, mean in means.items()}
        if self._collective is not None:
            metrics |= {"balance/actual_s": found.actual, "balance/best_s": found.best}
            metrics |= {"balance/imbalance": found.imbalance}
            metrics |= {f"balance/imbalance_{name}": found.imbalance_of(name) for name in WORK}
        if module is not None:  # for the progress
            module.log("throughput/traces_per_s", rate, prog_bar=True, logger=False, batch_size=1)
        step = trainer.global_step - 1  # as Lightning counts in logs
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)
            if isinstance(logger, TensorBoardLogger):
                for name, of_ranks in zip(PHASES, found.phases.T, strict=True):
                    logger.experiment.add_tensor(f"ranks/{name}_s", of_ranks.float(), step)

    def state_dict(self) -> dict[str, Any]:
        """The figures so far."""
        return {name: getattr(self, name) for name in _FIGURES}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        for name in _FIGURES:
            setattr(self, name, state_dict[name])
        self._waited_before = self.waited
        self._since = (self.traces, self.seconds)


_FIGURES = ("traces", "seconds", "waited", "actual", "best")
