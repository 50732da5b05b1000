"""Whole trainings for studies: made by ``etalumis train`` in this process, kept in folders, not repeated.

A study is a few trainings that differ in a setting. Each is kept below the study's folder with its settings, its
result and its curve; the same command goes on with what is not done yet. One thread.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import etalumis as et
from etalumis.conf.compose import compose, plain
from etalumis.lit_models.fit import fit
from etalumis.lit_models.inference_network import VALID_LOSS
from etalumis.networks.memory import keep_freed_memory
from etalumis.simulators.tau import Tau
from etalumis.storage import simulate, sort
from etalumis.storage.manifest import write_atomically

CURVE = "curve.json"
# Of every training of a study: it ends after its epochs, and reads in its own process.
FIXED = ("data.workers=0", "callbacks.early_stopping.patience=1000000", "resume=auto")


@dataclass(frozen=True)
class Training:
    """What came out of a training.

    Attributes:
        steps: optimiser steps at which it was validated.
        losses: of the validation then, nats.
        traces_per_s: of training alone, over the whole run.
    """

    steps: list[int]
    losses: list[float]
    traces_per_s: float

    def at_end(self) -> float:
        """The last validation loss."""
        return self.losses[-1]


def tau_data(folder: Path, traces: int, valid: int, sorted_too: bool = False) -> None:
    """τ decays below a folder: ``train``, ``valid`` and, sorted by type, ``sorted``; those that are there are kept."""
    make = lambda: et.Model(Tau(), name="tau")  # noqa: E731
    for name, count, seed in (("train", traces, 0), ("valid", valid, 1)):
        if not (folder / name / "manifest.json").exists():
            simulate(make, folder / name, count, model="tau", seed=seed, workers=0)
    if sorted_too and not (folder / "sorted" / "manifest.json").exists():
        sort([folder / "train"], folder / "sorted", workers=0)


def train(folder: Path, words: Sequence[str]) -> Training:
    """Train by the overrides of ``etalumis train``, unless the folder holds that training already.

    Raises:
        ValueError: the folder holds a training with other overrides.
    """
    settings, kept = folder / "overrides.json", [*FIXED, *words]
    if settings.exists() and json.loads(settings.read_text()) != kept:
        raise ValueError(f"{folder} holds a training with other settings: give another folder, or remove it")
    if not (folder / CURVE).exists():
        torch.set_num_threads(1)
        keep_freed_memory()
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(settings, json.dumps(kept, indent=2).encode())
        fit(plain(compose("train", [*kept, f"output={folder}"])))
        write_atomically(folder / CURVE, json.dumps(_read(folder)).encode())
    return Training(**json.loads((folder / CURVE).read_text()))


def _read(folder: Path) -> dict[str, Any]:
    """Losses from TensorBoard's log, throughput from result.json."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (log,) = {path.parent for path in (folder / "logs").rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(log), size_guidance={"scalars": 0}).Reload()
    valid = events.Scalars(VALID_LOSS)
    return {
        "steps": [e.step + 1 for e in valid],  # logged with the number of the last step, counted from 0
        "losses": [e.value for e in valid],
        "traces_per_s": json.loads((folder / "result.json").read_text())["traces_per_s"],
    }


def arguments(name: str, description: str | None) -> argparse.ArgumentParser:
    """The words that studies share."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object last on standard output")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, under a minute: whether it works")
    parser.add_argument("--folder", type=Path, help="of data and trainings, kept (runs/STUDY); temporary with --quick")
    parser.add_argument("--figures", type=Path, help="folder to draw into; none draws nothing")
    return parser
