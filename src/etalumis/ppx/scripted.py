"""Scripted executions on the wire: the rows of the tables Request and Columns, and what both sides count alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

Numbers = Any  # an array, or None where the message has none
Texts = tuple[str, ...] | None

# Where control comes back to the engine (enum ControlMode).
CONTROL_NONE, CONTROL_LISTED, CONTROL_ALL = range(3)
# How an execution ended (enum End).
FINISHED, REJECTED, STOPPED, EXHAUSTED, FAILED = range(5)


class Request(NamedTuple):
    """What ``Run`` asks for; schema.fbs says what the fields mean."""

    seed: int = 0
    first_index: int = 0
    executions: int = 1
    observe_names: Texts = None
    observe_sizes: Numbers = None
    observe_values: Numbers = None
    draw_observations: bool = True
    reject_zero: bool = False
    script_address: Numbers = None
    script_family: Numbers = None
    script_instance: Numbers = None
    script_sizes: Numbers = None
    script_values: Numbers = None
    control: int = CONTROL_NONE
    control_address: Numbers = None
    control_family: Numbers = None
    control_instance: Numbers = None
    stop_at: str | None = None
    stop_instance: int = 0
    max_draws: int = 0
    max_seconds: float = 0.0
    new_addresses: Texts = None


class Observed(NamedTuple):
    """The observe statements of scripted executions."""

    lengths: Numbers = None
    address: Numbers = None
    instance: Numbers = None
    name: Numbers = None
    distribution: Numbers = None
    sizes: Numbers = None
    values: Numbers = None
    observed: Numbers = None
    log_prob: Numbers = None


class Values(NamedTuple):
    """The tags of scripted executions, or their results (without address, instance and name)."""

    lengths: Numbers = None
    address: Numbers = None
    instance: Numbers = None
    name: Numbers = None
    ranks: Numbers = None
    shapes: Numbers = None
    values: Numbers = None


class Columns(NamedTuple):
    """What comes back; schema.fbs says what the fields mean."""

    new_addresses: Texts = None
    new_names: Texts = None
    codes: Numbers = None
    parameter_sizes: Numbers = None
    parameters: Numbers = None
    ranks: Numbers = None
    shapes: Numbers = None
    lengths: Numbers = None
    address: Numbers = None
    instance: Numbers = None
    name: Numbers = None
    distribution: Numbers = None
    control: Numbers = None
    conditioned: Numbers = None
    sizes: Numbers = None
    values: Numbers = None
    log_prob: Numbers = None
    log_q: Numbers = None
    observes: tuple[Any, ...] | None = None  # an Observed
    tags: tuple[Any, ...] | None = None  # a Values
    results: tuple[Any, ...] | None = None  # a Values
    log_likelihood: Numbers = None
    ended: Numbers = None
    error: str | None = None


class Numbering:
    """Texts numbered for the life of a connection, in the order in which they are first sent."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.numbers: dict[str, int] = {}
        self._sent = 0

    def number(self, text: str) -> int:
        """The number of a text, which is new where it has none."""
        number = self.numbers.get(text)
        if number is None:
            number = self.numbers[text] = len(self.texts)
            self.texts.append(text)
        return number

    def hear(self, texts: Iterable[str]) -> None:
        """The peer sent these as new."""
        for text in texts:
            self.number(text)
        self._sent = len(self.texts)

    def unsent(self) -> tuple[str, ...] | None:
        """The texts numbered here and not sent yet; they count as sent now."""
        fresh = tuple(self.texts[self._sent :])
        self._sent = len(self.texts)
        return fresh or None
