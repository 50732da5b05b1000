"""From the settings of a search to those of its points: Hydra's grammar of sweeps, ``KEY=A,B,C``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from etalumis.conf.build import ConfigError
from etalumis.conf.compose import compose, plain

_OWN = ("search", "output", "time_limit")  # settings of the search itself, not of its points
_SIZES = ("minibatch", "data", "trainer", "experiment")  # what minibatches are large by
_MOST = 10_000
_ODD = re.compile(r"[^\w.+-]+")  # what needs quotes on a command line


class Point(NamedTuple):
    """One training of a search.

    Attributes:
        name: of its folder; tells its values.
        values: of the swept settings.
        overrides: all that it is trained with, but the output folder.
    """

    name: str
    values: dict[str, Any]
    overrides: tuple[str, ...]


class Search(NamedTuple):
    """A search and its points; ``config`` is that of a training, with ``search`` as its YAML file describes."""

    config: dict[str, Any]
    points: tuple[Point, ...]


def expand(overrides: Sequence[str], config_dir: str | Path | None = None) -> Search:
    """The points of a search.

    Args:
        overrides: Hydra's; those with several values are swept, beside or in place of the preset's.
        config_dir: folder with config groups of the user's own.

    Raises:
        ConfigError: nothing to sweep, or a setting that a search does not take.
        HydraException, OmegaConfBaseException: an unknown key or choice, a value that can't be read.
    """
    chosen = any(word.startswith("search=") for word in overrides)
    given = list(overrides) if chosen else [*overrides, "search=custom"]
    parsed = OverridesParser.create().parse_overrides(given)
    own = [str(o.input_line) for o in parsed if _root(o) in _OWN]
    for override in parsed:
        if override.key_or_group in ("resume", "tune"):
            raise ConfigError(f"a search goes on by itself and does not tune: leave {override.input_line} out")
        if _root(override) == "cluster":
            raise ConfigError("a search starts its trainings itself: leave cluster out, and start the search in a job")
    known = {override.key_or_group for override in parsed}
    preset = compose("train", own, config_dir)["search"]
    added = [f"{key}={value}" for key, value in {**preset.fixed, **preset.sweep}.items() if key not in known]
    words = [*added, *(str(o.input_line) for o in parsed if _root(o) not in _OWN)]
    rest = OverridesParser.create().parse_overrides(words)
    swept = [o.get_key_element() for o in rest if o.is_sweep_override()]
    if not swept:
        raise ConfigError("nothing to search: give settings several values, as optimizer.lr=1e-3,1e-2")
    combinations = BasicSweeper.split_arguments(rest, None)[0]
    # The first in full, so that what is wrong in all of them is said now.
    config = plain(compose("train", [*own, *combinations[0]], config_dir))
    lengths: dict[tuple[str, ...], list[str]] = {}
    points = []
    for combination in combinations:
        sizes = tuple(word for word in combination if word.lstrip("+~").startswith(_SIZES))
        if sizes not in lengths:
            lengths[sizes] = _length(plain(compose("train", [*own, *combination], config_dir)))
        points.append(_point(swept, [*combination, *lengths[sizes]]))
    if len({point.name for point in points}) != len(points) or len(points) > _MOST:
        raise ConfigError(f"a search has points that differ, at most {_MOST}; these are {len(points)}")
    return Search(config, tuple(points))


def _length(config: Mapping[str, Any]) -> list[str]:
    """How long to train: as many iterations as the traces of a point take."""
    traces = config["search"]["num_traces"]
    if traces is None:
        return []
    size = config["minibatch"] or config["data"]["batch_size"] * config["trainer"]["accumulate_grad_batches"]
    return ["trainer.max_epochs=-1", f"trainer.max_steps={max(1, round(traces / size))}"]


def _point(swept: Sequence[str], words: Sequence[str]) -> Point:
    texts = dict(word.split("=", 1) for word in words)
    parsed = OverridesParser.create().parse_overrides([f"{key}={texts[key]}" for key in swept])
    keys = [key.lstrip("+") for key in swept]
    short = [key.rpartition(".")[2] for key in keys]
    names = short if len(set(short)) == len(short) else keys
    name = "_".join(f"{key}-{texts[full]}" for key, full in zip(names, swept, strict=True))
    values = {key: override.value() for key, override in zip(keys, parsed, strict=True)}
    return Point(_ODD.sub("-", name), values, tuple(words))


def quoted(key: str, text: str) -> str:
    """An override with any text as its value."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{escaped}"'


def _root(override: Override) -> str:
    return override.key_or_group.split(".")[0]
