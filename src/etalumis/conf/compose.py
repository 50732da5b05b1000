"""From a command line to settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from omegaconf import DictConfig, OmegaConf

from etalumis.conf.build import ConfigError

PACKAGE = "etalumis.conf"
_COUNTS = {"num_traces", "valid_traces", "prior_traces", "chunk_size", "batch_size", "workers", "threads"}
_COUNTS |= {"seed", "index", "chains", "steps", "burn_in", "thinning", "max_epochs", "max_steps", "minibatch"}
_NUMBERS = {"shard_mb", "memory_mb", "sparse_above", "cache_mb", "valid_fraction", "branch_share", "inflation", "idle"}
_COUNTS |= {"shard_traces", "top", "num_events"}
_NUMBERS |= {"max_failures", "timeout"}
_NUMBERS |= {"checkpoint_minutes", "decay", "gamma"}
_COUNTS |= {"reference_minibatch"}
_COUNTS |= {"max_draws", "buckets", "mixing", "epoch_traces", "sample_traces"}
_NUMBERS |= {"test_fraction", "limit"}
_COUNTS |= {"extra_runs", "max_instances", "rounds", "epochs"}
_NUMBERS |= {"defensive", "suffix_share", "dependants_share", "temper", "lr", "ess"}
_COUNTS |= {"skip"}
_COUNTS |= {"nodes", "ranks_per_node", "cores_per_rank", "gpus_per_node", "grace"}
_ON_RANKS = ("engine.workers", "mpi")  # the one word that stands for a number
_SEVERAL = {"sweep", "fixed"}  # overrides, which have several values
_OPEN = {"simulator", "observe"}  # what stands there is the user's
_PLAIN = {"inspect": "dataset", "validate": "dataset", "balance": "log"}  # what a word alone means


def compose(verb: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """The settings of a verb with overrides of the command line.

    Args:
        verb: names the file ``VERB.yaml``.
        overrides: Hydra's: ``key=value``, ``group=choice``, ``+new=value``, ``~key``; a folder alone for verbs that
            read one.
        config_dir: folder with config groups of the user's own.

    Raises:
        HydraException, OmegaConfBaseException: an unknown key or choice, a value that can't be read.
    """
    found = [_new_observation(_named(verb, override)) for override in overrides]
    if config_dir is not None:
        found.append(f"hydra.searchpath=[file://{Path(config_dir).resolve()}]")
    with initialize_config_module(PACKAGE, version_base="1.3"):
        return hydra_compose(verb, overrides=found)


def plain(config: DictConfig) -> dict[str, Any]:
    """Plain containers with everything interpolated.

    Raises:
        MissingMandatoryValue: naming a setting that has no default and was not given.
        ConfigError: naming a setting that must be a number and is not.
    """
    settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    _check_numbers({key: value for key, value in settings.items() if key not in _OPEN})
    return cast("dict[str, Any]", settings)


def _check_numbers(settings: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in settings.items():
        if key in _SEVERAL:
            continue
        if isinstance(value, Mapping):
            _check_numbers(value, f"{prefix}{key}.")
        elif value is not None and key in _COUNTS and type(value) is not int and (prefix + key, value) != _ON_RANKS:
            raise ConfigError(f"{prefix}{key}={value} must be a whole number")
        elif value is not None and key in _NUMBERS and type(value) not in (int, float):
            raise ConfigError(f"{prefix}{key}={value} must be a number")


def _named(verb: str, override: str) -> str:
    """A word alone is the value of the verb's one obvious setting."""
    if verb not in _PLAIN or "=" in override or override.startswith(("~", "+")):
        return override
    quoted = override.replace("\\", "\\\\").replace("'", "\\'")
    return f"{_PLAIN[verb]}='{quoted}'"


def _new_observation(override: str) -> str:
    """``observe.NAME=value`` adds a key: Hydra wants a plus sign there, users need not know."""
    return f"+{override}" if override.startswith("observe.") else override
