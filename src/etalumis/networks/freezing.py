"""Keeping parts of a network as they are."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from etalumis.networks.banks import banks_of
from etalumis.networks.errors import NetworkConfigError

PARTS = {
    "observations": ("observations",),
    "core": ("core", "projection"),
    "heads": ("heads",),
    "addresses": ("addresses",),
    "values": ("values",),
}


def freeze(network: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Let no gradient flow into parts of a network: optimisers keep no state for them and don't decay them.

    Args:
        network: whose dense parameters and banks are meant.
        patterns: names of :data:`PARTS` (the core has the projection to its inputs with it), of modules or parameters,
            or patterns of these with ``*`` and ``?``.

    Returns:
        The names of what is frozen.

    Raises:
        NetworkConfigError: a pattern meets nothing.
    """
    banks = banks_of(network)
    pages = {id(page) for bank in banks.values() for page in bank.pages}
    dense = {name: p for name, p in network.named_parameters() if id(p) not in pages}
    frozen: list[str] = []
    for pattern in patterns:
        wanted = PARTS.get(pattern, (pattern,))
        met = [name for name in (*dense, *banks) if any(_is_meant(name, part) for part in wanted)]
        if not met:
            there = sorted({name.split(".")[0] for name in (*dense, *banks)})
            raise NetworkConfigError(f"freeze: there is no {pattern!r}; give of {', '.join(PARTS)}, or of {there}")
        frozen += met
    for name in frozen:
        if name in banks:
            banks[name].freeze()
        else:
            dense[name].requires_grad_(False)
    return frozen


def _is_meant(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.") or fnmatchcase(name, part)
