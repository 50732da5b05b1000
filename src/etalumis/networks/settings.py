"""The settings of a network: what they are where nothing is said, and which make sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etalumis.networks.errors import NetworkConfigError
from etalumis.networks.heads import HEADS
from etalumis.networks.proposals import check_proposals

DEFAULTS: dict[str, Any] = {
    "observations": {},
    "observation_embedding": 256,
    "address_embedding": 64,
    "type_embedding": 8,
    "value_embedding": 4,
    "core": {"kind": "lstm"},
    "head": {"kind": "film", "hidden": None},
    "proposals": {},
    "components": 10,
    "bins": 40,
    "segments": 16,
    "max_instances": 4,
    "max_controlled": None,
    "seed": 0,
}

_SIZES = ("observation_embedding", "address_embedding", "type_embedding", "value_embedding")
_LIMITS = ("max_instances", "max_controlled")


def merged_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration over the defaults.

    Raises:
        NetworkConfigError: naming unknown keys and the known ones, or the setting that makes no sense.
    """
    unknown = sorted(set(config) - set(DEFAULTS))
    if unknown:
        raise NetworkConfigError(f"unknown network settings {unknown}; the settings are {sorted(DEFAULTS)}")
    out = {**DEFAULTS, **config}
    if not isinstance(out["head"], Mapping):
        raise NetworkConfigError(f"head={out['head']!r} must have a kind and its settings, such as {{kind: film}}")
    out["head"] = {**DEFAULTS["head"], **out["head"]}
    kind, unknown = out["head"]["kind"], sorted(set(out["head"]) - set(DEFAULTS["head"]))
    if kind not in HEADS or unknown:
        raise NetworkConfigError(f"a head has kind (one of {sorted(HEADS)}) and hidden; got {out['head']}")
    for name in _SIZES:
        if not _is_count(out[name]):
            raise NetworkConfigError(f"{name}={out[name]!r} must be a whole number of at least 1")
    for name, limit in (*((name, out[name]) for name in _LIMITS), ("head.hidden", out["head"]["hidden"])):
        if limit is not None and not _is_count(limit):
            raise NetworkConfigError(f"{name}={limit!r} must be a whole number of at least 1, or null")
    check_proposals(out)
    return out


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1
