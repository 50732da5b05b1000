"""Posteriors of two public benchmark tasks against their reference samples: C2ST of RMH and of IC.

    python -m benchmarks.sbibm_tasks --json [--quick]

Lueckmann et al., "Benchmarking simulation-based inference", AISTATS 2021. The wheel sbibm 1.1.0 ships observations and
reference posterior samples; the tasks are written here as models, from their definitions. C2ST is the accuracy of a
classifier that tells our samples from the reference's, cross-validated: 0.5 where they are alike, 1 where they share
nothing. The wheel and scikit-learn live in ``.bench/``, not in this environment.
"""

from __future__ import annotations

import bz2
import csv
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import etalumis as et
from benchmarks.common import Result, Settings, main, significant
from benchmarks.pyprob_peer import PeerUnavailableError, installed
from etalumis.distributions import Categorical, Normal, Uniform
from etalumis.networks import InferenceNetwork, pack
from etalumis.optim import RowAdam

SBIBM = ("sbibm==1.1.0",)
# Without NumPy and SciPy, which are here already.
CLASSIFIER = ("scikit-learn==1.9.1", "joblib==1.6.0", "cloudpickle==3.1.2", "threadpoolctl==3.8.0", "narwhals==2.29.0")
OBSERVATION = 1  # of the ten that each task has
GOOD = 0.6  # C2ST below which a posterior is as the reference for most purposes
FOLDS = 5
Array = NDArray[np.float64]


def gaussian_linear() -> None:
    """Ten means with normal priors, each seen once; all variances are 0.1."""
    stddev = 0.1**0.5
    theta = [et.sample(Normal(0.0, stddev), name=f"theta{k}") for k in range(10)]
    et.observe(Normal(np.array(theta), stddev), name="data")


def gaussian_mixture() -> None:
    """A place in the plane, seen with noise that is large or small with equal probabilities."""
    theta = [et.sample(Uniform(-10.0, 10.0), name=f"theta{k}") for k in range(2)]
    kind = et.sample(Categorical([0.5, 0.5]), name="kind")
    et.observe(Normal(np.array(theta), (1.0, 0.1)[kind]), name="data")


@dataclass(frozen=True)
class Task:
    """A model and the names of its parameters, in the reference's order."""

    model: Callable[[], None]
    parameters: Sequence[str]


TASKS = {
    "gaussian_linear": Task(gaussian_linear, [f"theta{k}" for k in range(10)]),
    "gaussian_mixture": Task(gaussian_mixture, ["theta0", "theta1"]),
}


def observation(folder: Path, task: str) -> Array:
    """What the task observes."""
    path = folder / "sbibm" / "tasks" / task / "files" / f"num_observation_{OBSERVATION}" / "observation.csv"
    return table(path.read_text(encoding="utf-8"))[0]


def reference(folder: Path, task: str) -> Array:
    """Samples of its posterior, (10000, parameters)."""
    path = folder / "sbibm" / "tasks" / task / "files" / f"num_observation_{OBSERVATION}"
    return table(bz2.decompress((path / "reference_posterior_samples.csv.bz2").read_bytes()).decode())


def table(text: str) -> Array:
    """The numbers of a CSV file below its header."""
    rows = list(csv.reader(text.splitlines()))[1:]
    return np.array(rows, dtype=np.float64)


def by_rmh(task: Task, data: Array, count: int) -> tuple[Array, str]:
    """So many states of chains, far enough apart, and what to note."""
    engine = et.RMH(chains=4, burn_in=2000, thinning=4 * len(task.parameters))
    post = et.posterior(et.Model(task.model), {"data": data}, engine, num_traces=count, seed=1, progress=False)
    return np.stack([post.values(name) for name in task.parameters], axis=1), ""


def by_ic(task: Task, data: Array, count: int, steps: int) -> tuple[Array, str]:
    """So many resampled traces of a small network, trained for seconds, and what to note."""
    model = et.Model(task.model)
    known = et.prior(model, num_traces=64 * steps, seed=2, progress=False).traces
    sizes = {"core": {"kind": "lstm", "hidden": 64}, "head": {"kind": "per_address", "hidden": 32}, "components": 5}
    network = InferenceNetwork.for_batch(sizes, known, simulator=model.name)
    optimizer = RowAdam(network, lr=3e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1.0 - step / steps)
        optimizer.zero_grad()
        loss, _ = network.loss(pack(known.select(np.arange(64 * step, 64 * step + 64)), network.layout))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    engine = et.IC(network.eval())
    post = et.posterior(model, {"data": data}, engine, num_traces=8 * count, seed=3, progress=False)
    chosen = np.random.default_rng(4).choice(len(post), count, p=post.weights)
    samples = np.stack([post.values(name) for name in task.parameters], axis=1)[chosen]
    return samples, f"; {count} resampled of {8 * count} with an effective sample size of {post.ess:.0f}"


def c2st(ours: Array, theirs: Array) -> float:
    """Cross-validated accuracy of a small network of scikit-learn, on inputs scaled by the reference."""
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    inputs = (np.concatenate([ours, theirs]) - theirs.mean(axis=0)) / theirs.std(axis=0)
    labels = np.repeat([0, 1], [len(ours), len(theirs)])
    width = 10 * inputs.shape[1]
    classifier = MLPClassifier(hidden_layer_sizes=(width, width), max_iter=1000, early_stopping=True, random_state=1)
    folds = KFold(n_splits=FOLDS, shuffle=True, random_state=1)
    return float(cross_val_score(classifier, inputs, labels, cv=folds).mean())


def results(settings: Settings) -> Iterator[Result]:
    """``TASK_rmh_c2st`` and ``TASK_ic_c2st``; null, with a note, where the wheels cannot be had."""
    torch.set_num_threads(1)
    logging.getLogger("etalumis").setLevel(logging.ERROR)
    names = [f"{task}_{engine}_c2st" for task in TASKS for engine in ("rmh", "ic")]
    try:
        folder = installed("sbibm-1.1.0", SBIBM)
        sys.path.append(str(installed("scikit-learn-1.9.1", CLASSIFIER)))
    except PeerUnavailableError as error:
        for name in names:
            yield Result(name, None, GOOD, None, None, "accuracy", 0, str(error))
        return
    count, steps = (1000, 250) if settings.quick else (4000, 1500)
    for name, task in TASKS.items():
        data, exact = observation(folder, name), reference(folder, name)
        theirs = exact[:count]
        floor = significant(c2st(exact[-count:], theirs))
        note = f"observation {OBSERVATION}; reference against itself {floor}"
        runs = {"rmh": by_rmh(task, data, count), "ic": by_ic(task, data, count, steps)}
        for engine, (samples, remark) in runs.items():
            accuracy = significant(c2st(samples, theirs))
            yield Result(f"{name}_{engine}_c2st", None, GOOD, accuracy, None, "accuracy", 1, note + remark)


if __name__ == "__main__":
    sys.exit(main("sbibm_tasks", results))
