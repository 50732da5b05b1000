"""How minibatches of 64, 2k and 32k traces converge: validation loss against traces and against iterations.

    python -m benchmarks.convergence --json [--quick] [--folder runs/convergence] [--figures docs/figures]

The study of the paper's figure 5, on τ decays: Adam-LARC, polynomial decay of order 2 over the whole training, the
learning rate scaled from minibatch to minibatch by ``optimizer.scaling=sub_square_root``. All see the same number of
traces, so large minibatches make few iterations. One of them is trained with several seeds (of weights, order and
noise). Everything is an ordinary training with the words of ``etalumis train``, kept in the folder; the same command
goes on. Large minibatches are accumulated from parts of 1,024 traces.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common import Result, significant, tell
from benchmarks.trainings import Training, arguments, tau_data, train

Curves = Mapping[int, Sequence[Training]]  # by minibatch, one for each seed


@dataclass(frozen=True)
class Plan:
    """What a study trains.

    Attributes:
        traces, valid: of the datasets.
        epochs: of each training.
        minibatches: traces to an iteration.
        repeated: the minibatch that is trained with ``seeds`` seeds.
        validations: per epoch.
        words: of all trainings.
    """

    traces: int
    valid: int
    epochs: int
    minibatches: tuple[int, ...]
    repeated: int
    seeds: int
    validations: int
    words: tuple[str, ...]


OPTIMISER = (
    "optimizer=adam_larc",
    "optimizer.lr=1e-2",
    "optimizer.trust=0.1",  # with the preset's 0.02 some dozen iterations hardly move a weight
    "optimizer.scaling=sub_square_root",
    "optimizer.reference_minibatch=2048",
    "scheduler=polynomial",
    "scheduler.power=2",
    "scheduler.end_lr=2e-5",
)
PART = "data.batch_size=1024"  # traces to a part of what is accumulated
FULL = Plan(131_072, 4096, 3, (64, 2048, 32_768), 2048, 5, 4, ("network=tau", PART, *OPTIMISER))
QUICK = Plan(2048, 256, 1, (64, 512, 1024), 512, 2, 2, ("network=small", *OPTIMISER))


def study(plan: Plan, folder: Path) -> Curves:
    """All trainings of a study: one seed of each minibatch first, the other seeds at the end."""
    tau_data(folder / "data", plan.traces, plan.valid)
    jobs = [(minibatch, 0) for minibatch in sorted(plan.minibatches, reverse=True)]
    jobs += [(plan.repeated, seed) for seed in range(1, plan.seeds)]
    found: dict[int, list[Training]] = {minibatch: [] for minibatch in plan.minibatches}
    for minibatch, seed in jobs:
        data = folder / "data"
        words = [f"data.train={data / 'train'}", f"data.valid={data / 'valid'}", f"trainer.max_epochs={plan.epochs}"]
        words += [f"trainer.val_check_interval={1 / plan.validations}", f"minibatch={minibatch}", f"seed={seed}"]
        training = train(folder / f"minibatch_{minibatch}_seed_{seed}", [*words, *plan.words])
        print(f"minibatch {minibatch}, seed {seed}: {training.at_end():.4f}", file=sys.stderr, flush=True)
        found[minibatch].append(training)
    return found


def losses(trainings: Sequence[Training]) -> np.ndarray:
    """Validation losses, (seeds, validations)."""
    return np.array([training.losses for training in trainings])


def results(plan: Plan, found: Curves) -> list[Result]:
    """What each minibatch ends at, and how much seeds differ."""
    seen = plan.traces * plan.epochs
    out = []
    for minibatch, trainings in found.items():
        ends = losses(trainings)[:, -1]
        spread = f", standard deviation {ends.std(ddof=1):.3f}" if len(ends) > 1 else ""
        note = f"{trainings[0].steps[-1]:,} iterations, {seen:,} traces, {len(ends)} seeds{spread}"
        end = significant(float(ends.mean()), 5)
        out.append(Result(f"loss_minibatch_{minibatch}", None, None, end, None, "nats", len(ends), note))
    repeated = losses(found[plan.repeated])
    deviation = significant(float(repeated.std(axis=0, ddof=1)[-1]), 3)
    out.append(Result("deviation_of_seeds", None, None, deviation, None, "nats", len(repeated), f"{plan.repeated}"))
    return out


def draw(found: Curves, path: Path) -> None:
    """Loss against traces and against iterations, a line per minibatch; a band of one deviation over seeds."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from etalumis.inference.figures.style import LOOKS, RC
    from etalumis.report.training import LOSS

    with rc_context(RC):
        figure = Figure(figsize=(10.0, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for (minibatch, trainings), look in zip(found.items(), LOOKS, strict=False):
            steps, curves = np.array(trainings[0].steps), losses(trainings)
            mean = curves.mean(axis=0)
            label = f"{minibatch:,} traces" + (f", {len(curves)} seeds, ±1 std" if len(curves) > 1 else "")
            for axes, across in zip(panels, (steps * minibatch, steps), strict=True):
                marks = {"marker": "o", "markersize": 3, "color": look.colour, "linestyle": look.dash}
                axes.plot(across, mean, label=label, **marks)
                if len(curves) > 1:
                    std = curves.std(axis=0, ddof=1)
                    axes.fill_between(across, mean - std, mean + std, color=look.colour, alpha=0.25, linewidth=0.0)
        panels[0].set_xlabel("traces seen")
        panels[1].set_xlabel("iterations")
        panels[1].set_xscale("log")
        panels[0].set_ylabel(f"validation {LOSS}")
        panels[0].legend(title="global minibatch")
        figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    given = arguments("convergence", __doc__).parse_args(argv)
    plan = QUICK if given.quick else FULL
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or (Path(temporary) if given.quick else Path("runs/convergence"))
        found = study(plan, folder)
    if given.figures is not None:
        given.figures.mkdir(parents=True, exist_ok=True)
        draw(found, given.figures / "convergence.png")
    tell("convergence", results(plan, found), given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
