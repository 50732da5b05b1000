"""The command line: ``etalumis VERB [KEY=VALUE ...]``.

Each verb composes its settings from :mod:`etalumis.conf` and hands them to the room that does the work. Worker
processes import this module too, so nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from etalumis.conf.tracebacks import TRACEBACK, shows_traceback

Config = Mapping[str, Any]

VERBS = {
    "simulate": "execute a simulator from its prior and store the traces",
    "sort": "sort stored traces by type, joining datasets",
    "inspect": "show what a dataset holds",
    "validate": "check every byte and number of a dataset",
    "train": "train an inference network on stored traces",
    "balance": "draw where the time of a training went, on each of its ranks",
    "event": "make one event with known truth to infer",
    "infer": "infer everything random in a simulator, given an observation",
    "report": "draw, tabulate and diagnose the posteriors of one event",
    "calibrate": "judge an engine by many events with known truth",
    "serve": "make a Python simulator answer engines that speak PPX",
    "demo": "all of it: simulate, train, infer by several engines, report",
}
_HELP = {"-h", "--help"}
_PATIENCE_S = 1.0  # an error that all ranks of a job have is said by the first, whose end ends them


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in _HELP:
        print(overview())
        return 0
    if words[0] == "--version":
        print(importlib.import_module("etalumis").__version__)
        return 0
    verb = words.pop(0)
    if verb not in VERBS:
        print(f"etalumis: there is no verb {verb!r}; the verbs are {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        with warnings.catch_warnings():
            warnings.showwarning = say_warning
            run(verb, words)
    except KeyboardInterrupt as interrupt:
        print(": ".join([f"\netalumis {verb}: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if launched_rank():
            time.sleep(_PATIENCE_S)
        if shows_traceback(error, words):
            traceback.print_exc()
        else:
            print(f"etalumis {verb}: {text_of(error)}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    return 0


def run(verb: str, words: Sequence[str]) -> None:
    """Run one verb; exceptions leave."""
    from etalumis.conf.compose import compose, plain

    if not _HELP.isdisjoint(words):
        from etalumis.conf.help import verb_help

        print(verb_help(verb, words), end="")
        return
    options, overrides = split_options(words)
    if "--multirun" in options and verb != "train":
        raise ValueError(f"--multirun is for etalumis train, not for {verb}")
    if verb == "train" and wants_search(options, overrides) and "--cfg" not in options:
        from etalumis.lit_models.job import alone
        from etalumis.lit_models.search import search

        alone("a search")
        print(search(overrides, options.get("--config-dir")))
        return
    config = compose(verb, overrides, options.get("--config-dir"))
    if "--cfg" in options:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config), end="")
        return
    settings = plain(config)
    if settings.get("cluster"):
        from etalumis.conf.batch_job import start

        print(start(settings, overrides, options.get("--config-dir")))
        return
    if (settings.get("engine") or {}).get("workers") == "mpi":
        from etalumis.inference.ranks import hand_over

        hand_over("etalumis.cli", [verb, *words])
    RUN[verb](settings)


def split_options(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The options ``--cfg``, ``--multirun`` and ``--config-dir DIR``, and the overrides.

    Raises:
        ValueError: an unknown option, or one without its value.
    """
    options: dict[str, str] = {}
    overrides: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == TRACEBACK:
            continue  # read by wants_traceback; a group has the same name in `train`
        if not word.startswith("-"):
            overrides.append(word)
        elif word in ("--cfg", "--multirun"):
            options[word] = ""
        elif word == "--config-dir":
            options[word] = next(rest, "")
        else:
            raise ValueError(f"there is no option {word}; settings are given as KEY=VALUE, see --help")
    if options.get("--config-dir") == "":
        raise ValueError("--config-dir needs a folder")
    return options, overrides


def wants_search(options: Mapping[str, str], overrides: Sequence[str]) -> bool:
    """Whether many trainings are asked for."""
    return "--multirun" in options or any(word.startswith("search=") for word in overrides)


def overview() -> str:
    """The help of the whole program."""
    verbs = "\n".join(f"  {verb:<10} {about}" for verb, about in VERBS.items())
    return (
        f"usage: etalumis VERB [KEY=VALUE ...]\n\n{verbs}\n\n"
        "etalumis VERB --help explains a verb's settings and shows examples."
    )


# --- verbs --------------------------------------------------------------------------------------------------------


def simulate(config: Config) -> None:
    """Store traces from the prior."""
    from etalumis.conf.simulation import run

    run(config)


def sort(config: Config) -> None:
    """Sort datasets by trace type."""
    from etalumis.conf.sorting import run

    run(config)


def inspect(config: Config) -> None:
    """Show what a dataset holds."""
    from etalumis.conf.inspection import run_inspect

    run_inspect(config)


def validate(config: Config) -> None:
    """Check a dataset."""
    from etalumis.conf.inspection import run_validate

    run_validate(config)


def train(config: Config) -> None:
    """Train a network, or find a learning rate for that."""
    use_threads(config["threads"])
    if config.get("tune"):
        from etalumis.lit_models.job import alone
        from etalumis.lit_models.lr_finder import tune

        alone("a range test")
        print(tune(config))
        return
    from etalumis.lit_models.fit import fit, summary
    from etalumis.networks.memory import keep_freed_memory

    keep_freed_memory()
    module = fit(config)
    if module.trainer.is_global_zero:
        print(summary(module))


def balance(config: Config) -> None:
    """Draw phases and load balance."""
    importlib.import_module("etalumis.report.balance").run(config)


def event(config: Config) -> None:
    """Store one event with its truth."""
    from etalumis.conf.build import build_model
    from etalumis.conf.events import simulate_event

    made = simulate_event(build_model(config["simulator"]), config["seed"], config["index"])
    made.save(config["output"])
    print(f"{config['output']} observes {', '.join(made.observe)}")
    for name, value in made.truth.items():
        meaning = f"  ({made.labels[name][int(value)]})" if name in made.labels else ""
        print(f"  {name:<20} {value:.6g}{meaning}")


def infer(config: Config) -> None:
    """Infer, print a summary and save the posterior."""
    use_threads(config["threads"])
    from etalumis.conf.build import build_engine, build_model, close
    from etalumis.conf.events import read_observation
    from etalumis.conf.quiet import ENGINES, errors_only

    observe = read_observation(config["observe"])
    engine = build_engine(config["engine"])
    model = build_model(config["simulator"])
    try:
        with errors_only(ENGINES):  # the printed posterior says its warnings
            posterior = engine.run(model, observe, config["num_traces"], seed=config["seed"])
    finally:
        close(model)
    posterior.save(config["output"])
    print(posterior)
    print(f"saved in {config['output']}")


def report(config: Config) -> None:
    """Draw, tabulate and diagnose posteriors."""
    importlib.import_module("etalumis.report").run(config)


def calibrate(config: Config) -> None:
    """Judge an engine."""
    use_threads(config["threads"])
    from etalumis.conf.calibration import run

    print(run(config))
    print(f"saved in {config['output']}")


def serve(config: Config) -> None:
    """Answer inference engines."""
    from etalumis.conf.build import build_model
    from etalumis.execution import Model
    from etalumis.ppx.serve import Server

    model = build_model(config["simulator"])
    if not isinstance(model, Model):
        raise ValueError(f"{model.name!r} runs in another process, which engines can talk to themselves")
    with Server(model, config["address"]) as server:
        print(f"{model.name} listens at {config['address']}", flush=True)
        server.run(config["idle"])


def demo(config: Config) -> None:
    """Simulate, train, infer, report."""
    use_threads(config["threads"])
    importlib.import_module("etalumis.demo").run(config)


RUN: dict[str, Callable[[Config], None]] = {
    verb.__name__: verb
    for verb in (simulate, sort, inspect, validate, train, balance, event, infer, report, calibrate, serve, demo)
}


def use_threads(threads: int | None) -> None:
    """Let torch use this many threads in this process: it reads the variable when it is imported."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)


# --- errors -------------------------------------------------------------------------------------------------------


def text_of(error: Exception) -> str:
    """An error's text, with the setting that it names where Hydra knows one."""
    text = str(error)
    if type(error).__name__ == "MissingMandatoryValue":
        key = getattr(error, "full_key", None) or getattr(error, "key", None)
        return f"{key} must be given: {key}=..." if key else text
    return text


def say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning in one line; of a job of several ranks the first one's."""
    if not launched_rank():
        print(f"warning: {message}", file=sys.stderr)


def launched_rank() -> int:
    """Which rank of a job this process is; 0 where it is alone."""
    from etalumis.storage.ranks import launched_rank as rank

    return rank()


if __name__ == "__main__":
    sys.exit(main())
