"""Where the time of a training went, on each rank, from its TensorBoard log: what ``etalumis balance`` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from etalumis.callbacks.phases import EXCHANGE, PHASES, WAITING, WORK
from etalumis.report.balance_figure import draw
from etalumis.report.tables import Grid
from etalumis.storage.manifest import write_atomically

_EVERYTHING = {"tensors": 0, "scalars": 0}  # of an accumulator, which keeps a sample otherwise
_UNSEEN = 0.001  # of an iteration: the imbalance of a shorter phase is noise


@dataclass(frozen=True)
class Phases:
    """Phases of a training's iterations, logged over intervals of some iterations each.

    Attributes:
        steps: the last iteration of each interval, counted from 1, (intervals,).
        iterations: in each interval, (intervals,).
        seconds: of each phase (:data:`.PHASES`) to an iteration, on each rank, (intervals, ranks, phases).
        imbalance: of each phase, the slowest rank of an iteration over the mean of all less 1, (intervals, phases);
            0 with one rank, and of waiting.
        traces_per_s: of all ranks together, (intervals,).
        dropped: intervals left out at the beginning, or made by another number of ranks.
    """

    steps: NDArray[np.int64]
    iterations: NDArray[np.int64]
    seconds: NDArray[np.float64]
    imbalance: NDArray[np.float64]
    traces_per_s: NDArray[np.float64]
    dropped: int = 0

    @classmethod
    def read(cls, folder: str | Path, skip: int = 0) -> Phases:
        """From a log of TensorBoard's.

        Args:
            folder: of the training, or of its logs.
            skip: intervals to leave out at the beginning, as far as others are left.

        Raises:
            ValueError: there is no log, or none of phases, or of several trainings.
        """
        events = EventAccumulator(str(_log_folder(Path(folder))), size_guidance=_EVERYTHING)
        events.Reload()
        if _ranks(PHASES[0]) not in events.Tags()["tensors"]:
            raise ValueError(
                f"the log in {folder} says nothing of phases: it comes from no etalumis train, from one that ended "
                "before it logged, or without callbacks.balance"
            )
        tensors = [{e.step: make_ndarray(e.tensor_proto) for e in events.Tensors(_ranks(name))} for name in PHASES]
        steps = sorted(tensors[0])
        ranks = len(tensors[0][steps[-1]])
        before = dict(zip(steps, [-1, *steps], strict=False))
        kept = [step for step in steps if len(tensors[0][step]) == ranks]
        kept = kept[min(skip, len(kept) - 1) :]
        imbalance = np.zeros((len(kept), len(PHASES)))
        for name in WORK if ranks > 1 else ():
            imbalance[:, PHASES.index(name)] = _scalars(events, f"balance/imbalance_{name}", kept)
        return cls(
            np.array(kept) + 1,
            np.array([step - before[step] for step in kept]),
            np.array([[of_phase[step] for of_phase in tensors] for step in kept], dtype=np.float64).transpose(0, 2, 1),
            imbalance,
            np.array(_scalars(events, "throughput/traces_per_s", kept)),
            len(steps) - len(kept),
        )

    @property
    def ranks(self) -> int:
        return self.seconds.shape[1]

    @property
    def of_ranks(self) -> NDArray[np.float64]:
        """Seconds of each phase to an iteration over all intervals, (ranks, phases)."""
        return np.average(self.seconds, axis=0, weights=self.iterations)

    @property
    def of_phases(self) -> NDArray[np.float64]:
        """The same as means over ranks, (phases,)."""
        return self.of_ranks.mean(0)

    @property
    def imbalance_of_phases(self) -> NDArray[np.float64]:
        """The slowest rank of each iteration over the mean, less 1, over all intervals, (phases,)."""
        weights = self.iterations[:, None] * self.seconds.mean(1)
        total = weights.sum(0)
        return np.divide((weights * self.imbalance).sum(0), total, out=np.zeros_like(total), where=total > 0.0)

    @property
    def actual(self) -> float:
        """Seconds of an iteration."""
        return float(self.of_phases.sum())

    @property
    def best(self) -> float:
        """Seconds of an iteration if no rank waited for another."""
        return self.actual - float(self.of_phases[PHASES.index(WAITING)])

    def to_json(self) -> dict[str, Any]:
        """Plain containers."""
        rows = zip(PHASES, self.of_phases, self.imbalance_of_phases, self.of_ranks.T, strict=True)
        return {
            "ranks": self.ranks,
            "iterations": int(self.iterations.sum()),
            "intervals": len(self.steps),
            "dropped_intervals": self.dropped,
            "actual_s": self.actual,
            "best_s": self.best,
            "imbalance": self.actual / self.best - 1.0,
            "traces_per_s": float(np.average(self.traces_per_s, weights=self.iterations)),
            "peak_traces_per_s": float(self.traces_per_s.max()),
            "phases": {
                name: {"mean_s": float(mean), "imbalance": float(imbalance), "ranks_s": of_ranks.tolist()}
                for name, mean, imbalance, of_ranks in rows
            },
        }

    def grid(self) -> Grid:
        """A table for people."""
        rows = []
        for name, mean, imbalance in zip(PHASES, self.of_phases, self.imbalance_of_phases, strict=True):
            seen = self.ranks > 1 and mean >= _UNSEEN * self.actual and name not in (WAITING, EXCHANGE)
            costs = (f"{imbalance:.1%}", f"{1e3 * imbalance * mean:.2f}") if seen else ("–", "–")
            rows.append((name, f"{1e3 * mean:.2f}", f"{mean / self.actual:.1%}", *costs))
        if self.ranks > 1:
            rows.append(("best", f"{1e3 * self.best:.2f}", f"{self.best / self.actual:.1%}", "–", "–"))
        imbalance = f"{self.actual / self.best - 1.0:.1%}" if self.ranks > 1 else "–"
        rows.append(
            ("actual", f"{1e3 * self.actual:.2f}", "100.0%", imbalance, f"{1e3 * (self.actual - self.best):.2f}")
        )
        title = f"An iteration of {self.ranks} rank{'s' if self.ranks > 1 else ''}, over {self.iterations.sum():,}"
        return Grid(title, ("phase", "mean [ms]", "share", "imbalance", "slowest − mean [ms]"), tuple(rows))


def run(config: Mapping[str, Any]) -> Phases:
    """The command ``etalumis balance``; its settings are explained in ``conf/balance.yaml``."""
    if config["skip"] < 0:
        raise ValueError(f"skip={config['skip']} must be at least 0")
    found = Phases.read(config["log"], config["skip"])
    output = Path(config["output"] or config["log"])
    output.mkdir(parents=True, exist_ok=True)
    draw(found, output / "balance.png", config.get("title") or "")
    write_atomically(output / "balance.json", (json.dumps(found.to_json(), indent=2) + "\n").encode())
    console = Console()
    console.print(found.grid().rich())
    console.print(f"{output / 'balance.png'} and balance.json", soft_wrap=True)
    return found


def _log_folder(folder: Path) -> Path:
    """The folder of event files in a folder.

    Raises:
        ValueError: there is none, or are several.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: give log=FOLDER, the output of an etalumis train")
    found = sorted({path.parent for path in folder.rglob("events.out.tfevents.*")})
    if not found:
        raise ValueError(f"{folder} holds no TensorBoard log: train with logger=tensorboard, which is the default")
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found[:3])
        raise ValueError(f"{folder} holds the logs of {len(found)} trainings ({names}…): give one of them")
    return found[0]


def _ranks(phase: str) -> str:
    return f"ranks/{phase}_s"


def _scalars(events: EventAccumulator, tag: str, steps: list[int]) -> list[float]:
    values = {event.step: event.value for event in events.Scalars(tag)}
    return [values[step] for step in steps]
