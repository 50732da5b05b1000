"""How many traces make an iteration: over all ranks, and accumulated on each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etalumis.conf.build import ConfigError


def shared(minibatch: int, ranks: int, most: int, before: int | None = None) -> tuple[int, int]:
    """A global minibatch as parts on ranks: traces to a part, and parts that each rank accumulates.

    All parts have the same size, so together they are ``minibatch`` traces or the least number above that can be
    divided so: less than one trace more for each part of each rank.

    Args:
        minibatch: traces to an iteration, over all ranks.
        ranks: how many.
        most: traces to a part at most.
        before: traces to a part of the training that is gone on with, maybe on other ranks; parts keep that size where
            they make the minibatch as well, because within an epoch none can go on with parts of another.

    Raises:
        ConfigError: there are less traces than ranks.
    """
    if minibatch < ranks:
        raise ConfigError(f"minibatch={minibatch} is over all {ranks} ranks: give at least one trace for each")
    if before is not None and before <= most and minibatch % (ranks * before) == 0:
        return before, minibatch // (ranks * before)
    parts = -(-minibatch // (ranks * most))
    return -(-minibatch // (ranks * parts)), parts


def with_minibatch(config: Mapping[str, Any], ranks: int = 1, before: int | None = None) -> dict[str, Any]:
    """The settings with ``minibatch`` spelled out as ``data.batch_size`` times the minibatches accumulated.

    Args:
        config: all settings.
        ranks: that share an iteration's traces.
        before: see :func:`shared`.

    Raises:
        ConfigError: one of these makes no sense, or they don't go together.
    """
    size, data, trainer = config["minibatch"], config["data"], config["trainer"]
    for name, count in (
        ("trainer.accumulate_grad_batches", trainer["accumulate_grad_batches"]),
        ("data.batch_size", data["batch_size"]),
    ):
        if type(count) is not int or count < 1:
            raise ConfigError(f"{name}={count!r} must be a whole number of at least 1")
    if size is None:
        return dict(config)
    if size < 1 or trainer["accumulate_grad_batches"] != 1:
        raise ConfigError(f"minibatch={size} must be at least 1, and trainer.accumulate_grad_batches not given with it")
    batch_size, parts = shared(size, ranks, data["batch_size"], before)
    data, trainer = data | {"batch_size": batch_size}, trainer | {"accumulate_grad_batches": parts}
    return {**config, "data": data, "trainer": trainer, "minibatch": None}
