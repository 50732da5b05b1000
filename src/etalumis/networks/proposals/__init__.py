"""Proposals: from a head's output to log q(x) and to draws from q. One class per kind, stateless but for sizes.

A head's output means something relative to the prior, in the coordinates of :mod:`etalumis.networks.columns`, so
that an output near zero is a broad proposal wherever the prior stands. Densities are computed in double precision
whatever the network's precision, and never clipped. A new kind is a file here and a line in ``_KINDS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etalumis.distributions import DISTRIBUTIONS
from etalumis.networks.errors import NetworkConfigError
from etalumis.networks.proposals.base import Columns, Proposal
from etalumis.networks.proposals.categories import Categories
from etalumis.networks.proposals.histogram import Histogram
from etalumis.networks.proposals.mixture import Count, Mixture
from etalumis.networks.proposals.spline import Spline

__all__ = ["Columns", "Proposal", "check_proposals", "proposal"]

# By kind: the class, and the setting that gives its size.
_KINDS: dict[str, tuple[Any, str]] = {
    "mixture": (Mixture, "components"),
    "count": (Count, "components"),
    "categorical": (Categories, "categories"),
    "histogram": (Histogram, "bins"),
    "spline": (Spline, "segments"),
}


def proposal(kind: str, sizes: Mapping[str, Any]) -> Proposal:
    """A proposal of a kind, as distribution families (``Distribution.proposal``) or a network's settings name it.

    Args:
        sizes: ``components``, ``bins``, ``segments`` and ``categories``; a kind takes the one that it needs.
    """
    make, size = _KINDS[kind]
    answer: Proposal = make(sizes[size])
    return answer


def check_proposals(settings: Mapping[str, Any]) -> None:
    """The settings of a network that say what its proposals are.

    Args:
        settings: ``proposals``, a kind by name of a family; the sizes ``components``, ``bins``, ``segments``.

    Raises:
        NetworkConfigError: naming the family and the kinds that fit it, or the size that makes no sense.
    """
    for size in ("components", "bins", "segments"):
        if type(settings[size]) is not int or settings[size] < 1:
            raise NetworkConfigError(f"{size}={settings[size]!r} must be a whole number of at least 1")
    chosen = settings["proposals"]
    if not isinstance(chosen, Mapping):
        raise NetworkConfigError(f"proposals={chosen!r} must name kinds by family, such as {{Uniform: histogram}}")
    for family, kind in chosen.items():
        if family not in DISTRIBUTIONS:
            raise NetworkConfigError(f"proposals: no family {family!r}; the families are {sorted(DISTRIBUTIONS)}")
        fitting = sorted(name for name, (made, _) in _KINDS.items() if made.fits(DISTRIBUTIONS[family]))
        if kind not in fitting:
            raise NetworkConfigError(f"proposals: {family} can't be answered by {kind!r}; what fits is {fitting}")
