"""``etalumis demo``: the whole path from a simulator to a posterior, as a list of steps.

Each step writes its result whole into the output folder and is skipped where that exists, so an interrupted demo
goes on where it stopped. Markov chains need the simulator only: they run in the background while the network
trains, at low priority, and take the core that training leaves. Under ``mpirun`` all ranks simulate and train together;
rank 0 does the rest, and the others wait for it.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from etalumis.conf import simulation
from etalumis.conf.build import build_model
from etalumis.conf.compose import compose, plain
from etalumis.conf.events import simulate_event
from etalumis.execution import Simulator, TraceBatch
from etalumis.inference import IC, RMH, ImportanceSampling, Posterior
from etalumis.report import Event, Sample, write_report
from etalumis.report.report import show
from etalumis.report.summary import Summary
from etalumis.report.verdict import judge, verdict_grid
from etalumis.storage import Dataset
from etalumis.storage.manifest import write_atomically
from etalumis.storage.ranks import Ranks

Config = Mapping[str, Any]

TITLE = "Posterior of a τ decay, given the calorimeter's image of it ({simulator})"
_CHAINS_TIME = "RMH ran at low priority beside the training; alone on one core it takes {core_seconds:.0f} s.\n"
_LOWER_PRIORITY = 10
_MOST_EVENTS = 100_000
_POLL_S = 0.5


class DemoError(RuntimeError):
    """The demo can't go on."""


def run(config: Config) -> Summary | None:
    """Run every step that is not done, and print the tables and whether the result stands.

    Args:
        config: what ``conf/demo.yaml`` describes.

    Returns:
        What came out; None on ranks other than 0.

    Raises:
        DemoError: the output folder holds a demo of other settings, or a background process failed.
        DatasetError: several ranks were launched, and mpi4py is missing or does not see them.
        KeyboardInterrupt: on Ctrl-C; says how to go on.
    """
    ranks = Ranks.of_job()
    try:
        with simulation.one_for_all(ranks):
            summary: Summary | None = None
            if ranks.rank == 0:
                summary = _steps(config, ranks)
            else:
                _join(config, ranks)
            ranks.meet()
            return summary
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on where it stopped") from None


def _join(config: Config, ranks: Ranks) -> None:
    """What other ranks than 0 do of the steps."""
    simulate_both(config, ranks)
    train(config, ranks)


def _steps(config: Config, ranks: Ranks) -> Summary:
    started = time.monotonic()
    folder, sizes = Path(config["output"]), config["demo"]
    terminal = sys.stdout.isatty() and ranks.size == 1  # mpirun makes one of every file and pipe
    console = Console() if terminal else Console(width=100, force_terminal=False)
    remember(config, folder)
    model = build_model(config["simulator"])

    def step(number: int, text: str) -> None:
        console.rule(f"[bold]{number}/6[/bold]  {text}  [dim]{time.monotonic() - started:.0f} s[/dim]", align="left")

    step(1, f"simulate {sizes['num_traces']:,} decays to learn from")
    simulate_both(config, ranks)
    event = held_out_event(model, sizes["event"], folder / "event.npz")
    with markov_chains(config, folder) as chains:
        step(2, "train the network (Markov chains run beside it)")
        train(config, ranks)
        step(3, f"infer by inference compilation: {sizes['ic']['num_traces']:,} executions")
        infer_ic(config, model, event, folder)
        step(4, "infer by importance sampling: weigh the stored traces")
        infer_stored(config, model, event, folder)
        keep_prior(config)
        step(5, f"infer by Metropolis-Hastings: {sizes['rmh']['chains']} chains of {sizes['rmh']['steps']:,} steps")
        chains.wait()
    step(6, "compare")
    summary = report(config, model, event, console)
    console.print(f"{time.monotonic() - started:.0f} s in all; the figure is {folder / 'posterior.png'}")
    return summary


def remember(config: Config, folder: Path) -> None:
    """Write the settings down, or see that they are those of the demo in this folder."""
    settings = {key: config[key] for key in ("simulator", "demo", "seed")}
    path = folder / "demo.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode())
    elif json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(settings)):
        raise DemoError(
            f"{folder} holds a demo with other settings (see {path}); choose another output, or delete the folder"
        )


# --- steps ----------------------------------------------------------------------------------------------------------


def simulate_both(config: Config, ranks: Ranks) -> None:
    """What the network learns from and is validated with. The ranks are the workers where there are enough of them."""
    each = config["workers"] // ranks.size
    shared = config if ranks.size == 1 else {**config, "workers": each if each > 1 else 0}
    simulate(shared, "train", config["demo"]["num_traces"], seed=config["seed"])
    simulate(shared, "valid", config["demo"]["valid_traces"], seed=config["seed"] + 1)


def simulate(config: Config, name: str, num_traces: int, seed: int) -> None:
    """A dataset below the output folder, as ``etalumis simulate`` makes it."""
    folder = Path(config["output"]) / name
    settings = plain(compose("simulate", [f"output={folder}", f"num_traces={num_traces}", f"seed={seed}"]))
    simulation.run({**settings, "simulator": config["simulator"], "workers": config["workers"]})


def held_out_event(model: Simulator, rule: Config, path: Path) -> Event:
    """The first trace of the event's own seed that is of the wanted channel and bright enough.

    Nothing is inferred before: the rule alone decides.
    """
    if path.exists():
        return Event.load(path)
    for index in itertools.islice(itertools.count(), _MOST_EVENTS):
        event = simulate_event(model, rule["seed"], index)
        channel = event.labels["decay_channel"][int(event.truth["decay_channel"])]
        if channel == rule["channel"] and event.truth["visible_energy"] >= rule["visible_energy"]:
            event.save(path)
            return event
    raise DemoError(
        f"none of {_MOST_EVENTS:,} events decays to {rule['channel']!r} with {rule['visible_energy']} GeV; the "
        f"channels are {', '.join(map(repr, event.labels['decay_channel']))}"
    )


def train(config: Config, ranks: Ranks | None = None) -> None:
    """A network below the output folder, as ``etalumis train`` makes it; several ranks share the minibatches of one."""
    from etalumis.lit_models.fit import fit

    ranks = ranks or Ranks()
    folder = Path(config["output"])
    output = folder / "network"
    ranks.meet()
    done, begun = ranks.share(((output / "network.pt").exists(), (output / "checkpoints" / "last.ckpt").exists()))
    if done:
        return
    settings = [f"output={output}", f"data.train={folder / 'train'}", f"data.valid={folder / 'valid'}"]
    settings += [f"resume={str(begun).lower()}", f"seed={config['seed']}"]
    settings += ["strategy=mpi", "minibatch=${data.batch_size}"] if ranks.size > 1 else []
    fit(plain(compose("train", [*settings, *config["demo"]["train"]])))


def infer_ic(config: Config, model: Simulator, event: Event, folder: Path) -> None:
    """The posterior by the network's proposals, into ``folder``."""
    if (folder / "post_ic").exists():
        return
    network = Path(config["output"]) / "network" / "network.pt"
    engine, count = IC(network), config["demo"]["ic"]["num_traces"]
    before = core_seconds()
    with simulation.progress("IC", count) as report:
        posterior = engine.run(model, event.observe, count, config["seed"] + 2, counting(report))
    posterior.info["core_seconds"] = core_seconds() - before
    posterior.save(folder / "post_ic")


def infer_stored(config: Config, model: Simulator, event: Event, folder: Path) -> None:
    """The posterior by weighing the training set, into ``folder``."""
    if not (folder / "post_is").exists():
        posterior = ImportanceSampling(dataset=Path(config["output"]) / "train").run(model, event.observe)
        posterior.save(folder / "post_is")


def keep_prior(config: Config) -> None:
    """The prior, from the first traces of the training set."""
    folder = Path(config["output"])
    if not (folder / "prior").exists():
        traces = stored_traces(Dataset(folder / "train"), config["demo"]["prior_traces"])
        Posterior(traces, np.zeros(len(traces)), info={"engine": "prior"}).save(folder / "prior")


def stored_traces(dataset: Dataset, count: int) -> TraceBatch:
    """At least ``count`` traces (or all there are) without what they observed."""
    batches: list[TraceBatch] = []
    for batch in dataset.batches():
        batches.append(replace(batch, observes=()))
        if sum(map(len, batches)) >= count:
            break
    return TraceBatch.concatenate(batches)


def report(config: Config, model: Simulator, event: Event, console: Console) -> Summary:
    """Figure, tables and verdict."""
    folder = Path(config["output"])
    samples, prior = load_samples(folder), Sample.of(Posterior.load(folder / "prior"), "prior")
    summary = write_report(samples, folder, event, prior, title=TITLE.format(simulator=model.name))
    show(summary, console)
    console.print(_CHAINS_TIME.format(**samples[1].info))
    console.print(verdict_grid(judge(summary)).rich())
    return summary


def load_samples(folder: Path) -> list[Sample]:
    """The posteriors of one event: by IC, by RMH, and by weighing stored traces."""
    names = {"post_ic": "IC", "post_rmh": "RMH", "post_is": "IS"}
    return [Sample.of(Posterior.load(folder / path), label) for path, label in names.items()]


def core_seconds() -> float:
    """Processor time of this process and of those that it has waited for."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def counting(report: Callable[[int], None]) -> Callable[[int, str], None]:
    """What engines tell (how much more is done) for one who wants to hear how much is done in all."""
    done = 0
    report(done)

    def tell(amount: int, note: str) -> None:
        nonlocal done
        done += amount
        report(done)

    return tell


# --- Markov chains in the background ----------------------------------------------------------------------------------


class Background:
    """A process that runs the Markov chains and saves their posterior; none where that is done.

    Args:
        config: settings of the demo.
        folder: holds the event, and gets the posterior.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._process: SpawnProcess | None = None
        rmh = config["demo"]["rmh"]
        self._total = rmh["chains"] * rmh["steps"]
        if not (folder / "post_rmh").exists():
            context = multiprocessing.get_context("spawn")
            self._done = context.Value("q", 0)
            self._process = context.Process(target=_run_chains, args=(self._done, dict(config), folder))
            self._process.start()

    def wait(self) -> None:
        """Show progress until the chains are done.

        Raises:
            DemoError: the process failed; what went wrong it has printed.
        """
        if self._process is None:
            return
        with simulation.progress("RMH", self._total, "steps") as report:
            while self._process.is_alive():
                report(self._done.value)
                self._process.join(_POLL_S)
            report(self._done.value)
        if self._process.exitcode:
            raise DemoError(f"the Markov chains failed (exit code {self._process.exitcode}); see above")

    def stop(self) -> None:
        """End the process if it still runs."""
        if self._process is not None:
            self._process.terminate()
            self._process.join()


def chains_engine(config: Config, folder: Path | None = None) -> RMH:
    """Metropolis–Hastings as the demo runs it; with a folder its chains are kept there, and can go on."""
    settings = config["demo"]["rmh"]
    return RMH(
        chains=settings["chains"],
        burn_in=settings["burn_in"],
        thinning=settings["thinning"],
        branch_share=settings["branch_share"],
        dependants_share=settings["dependants_share"],
        folder=folder,
        workers=config["workers"],
    )


def kept_states(settings: Config, steps: int) -> int:
    """How many states all chains keep of so many steps each."""
    kept: int = settings["chains"] * (steps - settings["burn_in"]) // settings["thinning"]
    return kept


@contextmanager
def markov_chains(config: Config, folder: Path) -> Iterator[Background]:
    """Markov chains that run while the body does something else."""
    background = Background(config, folder)
    try:
        yield background
    finally:
        background.stop()


def _run_chains(done: Synchronized[int], config: Config, folder: Path) -> None:
    """Body of the background process; ``done`` counts steps."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal: the demo itself decides
    os.nice(_LOWER_PRIORITY)
    settings = config["demo"]["rmh"]

    parent = os.getppid()

    def tell(amount: int, note: str) -> None:
        if os.getppid() != parent:
            raise SystemExit("the demo has ended")  # killed, as by the end of a job of several ranks
        done.value += amount

    engine, kept = chains_engine(config), kept_states(settings, settings["steps"])
    observe = Event.load(folder / "event.npz").observe
    model, before = build_model(config["simulator"]), core_seconds()
    posterior = engine.run(model, observe, kept, config["seed"] + 3, tell)
    posterior.info["core_seconds"] = core_seconds() - before
    posterior.save(folder / "post_rmh")
