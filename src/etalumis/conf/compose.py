"""From a command line to settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from omegaconf import DictConfig, OmegaConf

PACKAGE = "etalumis.conf"


def compose(verb: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """The settings of a verb with overrides of the command line.

    Args:
        verb: names the file ``VERB.yaml``.
        overrides: Hydra's: ``key=value``, ``group=choice``, ``+new=value``, ``~key``.
        config_dir: folder with config groups of the user's own.

    Raises:
        HydraException, OmegaConfBaseException: an unknown key or choice, a value that can't be read.
    """
    found = [_new_observation(override) for override in overrides]
    if config_dir is not None:
        found.append(f"hydra.searchpath=[file://{Path(config_dir).resolve()}]")
    with initialize_config_module(PACKAGE, version_base="1.3"):
        return hydra_compose(verb, overrides=found)


def plain(config: Any) -> Any:
    """Plain containers with everything interpolated.

    Raises:
        MissingMandatoryValue: naming a setting that has no default and was not given.
    """
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def _new_observation(override: str) -> str:
    """``observe.NAME=value`` adds a key: Hydra wants a plus sign there, users need not know."""
    return f"+{override}" if override.startswith("observe.") else override
