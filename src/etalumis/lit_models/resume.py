"""Going on with a training: the checkpoint, and whether it is one of the training that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etalumis.conf.build import ConfigError
from etalumis.networks import CheckpointError, InferenceNetwork, Row, checkpoint

AUTO = "auto"
_WRITTEN = ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "network.pt", "result.json", "logs/events.out.*")
_BEGUN = ("checkpoints/.*.ckpt.*.tmp", ".network.pt.*.tmp")  # see etalumis.networks.checkpoint.write
_NOT_WEIGHTS = ("config.seed",)  # settings that a checkpoint makes meaningless
_SAME = ("seed", "data.train", "data.valid")  # what makes it the same training for resume=auto


def find_checkpoint(resume: bool | str, output: Path) -> Path | None:
    """The checkpoint to go on from; None for none.

    Args:
        resume: a path; true for last.ckpt of the output folder; "auto" for the same where there is one; false for none.
        output: folder of the training.

    Raises:
        ConfigError: it does not exist, or the folder holds a finished network that nothing can go on from.
    """
    if resume is False:
        return None
    path = output / _WRITTEN[0] if resume is True or resume == AUTO else Path(resume)
    if path.is_file():
        return path
    if resume != AUTO:
        raise ConfigError(
            f"there is no checkpoint {path} to go on from; give resume=PATH, or resume=false to begin anew"
        )
    if (output / "network.pt").exists():
        raise ConfigError(
            f"{output} holds a network.pt, but no checkpoint to go on from; give another output=..., or resume=false "
            "to train anew in its place"
        )
    return None


class Stored(NamedTuple):
    """A checkpoint to go on from, read once: with many addresses it is large, and all ranks read it."""

    path: Path
    content: dict[str, Any]

    @property
    def batch_size(self) -> int | None:
        """Traces to a minibatch of each rank of that training; None where it does not say."""
        settings = self.content.get("settings") or {}
        size = settings.get("data", {}).get("batch_size")
        return size if type(size) is int else None

    @property
    def rows(self) -> list[Row] | None:
        """Those of its network; None where it is no training's."""
        return checkpoint.rows_of(self.content) if "etalumis" in self.content else None


def check_checkpoint(stored: Stored, network: InferenceNetwork, config: Mapping[str, Any]) -> None:
    """See that a training of this network with these settings can go on from a checkpoint.

    Raises:
        ConfigError: it is of another network, of a longer training, or (resume=auto) of another training.
    """
    path, content = stored
    if "etalumis" not in content or "epoch" not in content:
        raise ConfigError(
            f"{path} holds a network without its training; etalumis train goes on from checkpoints/last.ckpt"
        )
    anew = "give another output=..., or resume=false to begin anew in its place"
    given, found = (dict(leaves(c)) for c in (checkpoint.describe(network), content["etalumis"]))
    others = [
        f"{key.removeprefix('config.')}={given.get(key)} (was {found.get(key)})"
        for key in sorted(given.keys() | found.keys(), key=lambda key: (key != "simulator", key))
        if given.get(key) != found.get(key) and key not in _NOT_WEIGHTS
    ]
    if others:
        raise ConfigError(f"{path} is of another network: {', '.join(others)}; give its settings, {anew[5:]}")
    if config["resume"] == AUTO:
        now, then = dict(leaves(config)), dict(leaves(content.get("settings", {})))
        others = [
            f"{key}={now.get(key)} (was {then.get(key)})"
            for key in _SAME
            if _whole(now.get(key)) != _whole(then.get(key))
        ]
        if others:
            raise ConfigError(
                f"{path} is of another training: {', '.join(others)}; {anew}, or resume=true to go on from it all "
                "the same"
            )
    reached, limit = content["epoch"] + 1, config["trainer"].get("max_epochs")
    if limit is not None and 0 <= limit < reached:
        raise ConfigError(
            f"{path} reached epoch {reached}, which is beyond trainer.max_epochs={limit}; give more epochs, or "
            "resume=false to begin anew"
        )


def clear(output: Path) -> None:
    """Delete what an earlier training left in a folder, so that nothing of it is taken for the new one's."""
    for pattern in _WRITTEN:
        for path in output.glob(pattern):
            path.unlink()


def sweep(output: Path) -> None:
    """Delete the beginnings of files that a process left which was killed while it wrote them."""
    for pattern in _BEGUN:
        for path in output.glob(pattern):
            path.unlink()


def read_checkpoint(path: Path) -> Stored:
    """Read a file; where it is damaged, the error says whether best.ckpt beside it is whole.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        return Stored(path, checkpoint.read(path))
    except CheckpointError as error:
        best = path.with_name("best.ckpt")
        try:
            checkpoint.read(best)
        except CheckpointError:
            raise error from None
        if best == path:
            raise
        raise CheckpointError(f"{error}; {best} is whole: go on from there with resume={best}") from error


def _whole(value: Any) -> Any:
    """A setting in which folders are told apart however they are written."""
    return Path(value).resolve() if isinstance(value, str) else value


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted keys."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
