"""From settings to objects."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from etalumis.execution import Model, Simulator


class ConfigError(ValueError):
    """A setting that can't be used."""


def build_model(config: Mapping[str, Any]) -> Simulator:
    """The model that a ``simulator`` group describes.

    Args:
        config: ``_target_``, a function or class as ``package.module:name`` or with dots only; ``name``; the
            rest are its arguments. A function is the model itself, a class is made and its object called.

    Raises:
        ConfigError: there is no such function or class.
    """
    arguments = {key: build(value) for key, value in config.items() if key not in ("_target_", "name")}
    target = locate(str(config["_target_"]))
    name = config.get("name")
    if isinstance(target, type):
        if hasattr(target, "execute"):  # a model already, such as a simulator in another process
            return target(**arguments, **({"name": name} if name else {}))
        return Model(target(**arguments), name or target.__name__)
    if not callable(target):
        raise ConfigError(f"_target_={config['_target_']!r} is {target!r}; a simulator is a function or a class")
    function = functools.partial(target, **arguments) if arguments else target
    return Model(function, name or target.__name__)


def build_engine(settings: Mapping[str, Any]) -> Any:
    """The inference engine that an ``engine`` group describes.

    Raises:
        ConfigError: it needs a trained network, and none is given.
    """
    network = settings["proposals"]["engine"] if settings.get("proposals") else settings
    if "checkpoint" in network and network["checkpoint"] is None:
        raise ConfigError(
            "this engine needs a trained network: give checkpoint=FOLDER/network.pt as etalumis train wrote it, or "
            "choose another, as engine=rmh"
        )
    return build(settings)


def close(model: Simulator) -> None:
    """Let go of what a model holds, such as simulator processes."""
    end = getattr(model, "close", None)
    if end is not None:
        end()


def build(config: Any) -> Any:
    """What a node describes by ``_target_``; any other value as it is.

    Raises:
        Exception: whatever the target raised, as it raised it.
    """
    if not isinstance(config, Mapping) or "_target_" not in config:
        return config
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None


def locate(path: str) -> Any:
    """The function or class at ``package.module:name`` or ``package.module.name``; also of the working directory."""
    module_name, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except ValueError as error:
        raise ConfigError(f"_target_={path!r} is not of the form package.module:function") from error
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ConfigError(
            f"_target_={path!r}: there is no module {error.name!r} in this environment or in {Path.cwd()}"
        ) from error
    except AttributeError as error:
        raise ConfigError(f"_target_={path!r}: module {module_name!r} has no {name!r}") from error
    return found
