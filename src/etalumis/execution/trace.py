"""What was said in one execution of a simulator."""

from __future__ import annotations

from typing import Any, NamedTuple

from etalumis.distributions import Distribution

FINISHED = "finished"
REJECTED = "rejected"
FAILED = "failed"

# Base addresses of the markers of rejection loops; the loop's name follows. A loop of n passes makes n + 1 markers
# of the first kind, one where each pass begins and one behind the last, before which stands one of the second kind.
PASS = "@pass "
ACCEPTED = "@accepted "


class Observed(NamedTuple):
    """One ``observe`` statement. Where no value was given, ``value`` was drawn (or is None where nobody wanted
    it), ``observed`` is False and the statement adds nothing to the likelihood."""

    address: int
    name: str
    distribution: Distribution
    value: Any
    observed: bool
    log_prob: float


class Tagged(NamedTuple):
    """One ``tag`` statement."""

    address: int
    name: str
    value: Any


class Mark(NamedTuple):
    """A marker of a rejection loop.

    Attributes:
        base: base address; see ``PASS`` and ``ACCEPTED``.
        instance: how many markers of this base the execution has met, this one included.
        position: draws before it.
        log_likelihood: of what was scored before it.
    """

    base: str
    instance: int
    position: int
    log_likelihood: float


def is_mark(base: str) -> bool:
    """Whether a base address is that of a marker."""
    return base.startswith((PASS, ACCEPTED))


class Trace:
    """One execution: parallel lists with an entry per ``sample`` statement; observes, tags, markers of loops, result.

    ``log_priors`` and ``log_proposals`` hold 0 at conditioned draws, whose density counts as likelihood. Where
    a controller ended the execution early, ``ended`` is "rejected" and the likelihood is zero. Where a simulator
    broke down and may be left out, ``ended`` is "failed": such a trace is no sample.
    """

    __slots__ = (
        "addresses",
        "conditioned",
        "controlled",
        "distributions",
        "ended",
        "index",
        "log_likelihood",
        "log_prior",
        "log_priors",
        "log_proposal",
        "log_proposals",
        "marks",
        "names",
        "observes",
        "result",
        "tags",
        "values",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.addresses: list[int] = []
        self.distributions: list[Distribution] = []
        self.values: list[Any] = []
        self.names: list[str] = []
        self.log_priors: list[float] = []
        self.log_proposals: list[float] = []
        self.controlled: list[bool] = []
        self.conditioned: list[bool] = []
        self.observes: list[Observed] = []
        self.tags: list[Tagged] = []
        self.marks: list[Mark] = []
        self.result: Any = None
        self.log_likelihood = 0.0
        self.log_prior = 0.0
        self.log_proposal = 0.0
        self.ended = FINISHED

    @property
    def log_weight(self) -> float:
        """Log importance weight: log p(y | x) + log p(x) − log q(x)."""
        return self.log_likelihood + self.log_prior - self.log_proposal

    def __len__(self) -> int:
        return len(self.addresses)

    def __getitem__(self, name: str) -> Any:
        """The value of the only draw or tag of this name."""
        found = [value for value, named in zip(self.values, self.names, strict=True) if named == name]
        found += [tag.value for tag in self.tags if tag.name == name]
        if len(found) != 1:
            known = sorted({*filter(None, self.names), *(tag.name for tag in self.tags)})
            raise KeyError(f"{name!r} names {len(found)} draws or tags of this trace; its names are {known}")
        return found[0]

    def __repr__(self) -> str:
        return (
            f"Trace(index={self.index}, draws={len(self.addresses)}, observes={len(self.observes)}, "
            f"log_weight={self.log_weight:.4g}, result={self.result!r})"
        )
