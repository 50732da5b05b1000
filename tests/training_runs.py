"""What tests of training share: small datasets, settings for small networks, comparisons to the last bit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import etalumis as et
from etalumis.conf.compose import compose, plain
from etalumis.simulators.classics import branching, gaussian
from etalumis.simulators.detector import Detector
from etalumis.simulators.tau import Tau

SMALL = [
    "network.observation_embedding=16",
    "network.core.hidden=16",
    "network.head.hidden=8",
    "data.workers=0",
    "data.batch_size=64",
    "logger=none",
]


def gaussian_model() -> et.Model:
    return et.Model(gaussian)


def branching_model() -> et.Model:
    return et.Model(branching)


def tau_model() -> et.Model:
    return et.Model(Tau(Detector(shape=(4, 5, 6))), name="tau")


def settings(train: Path, output: Path, *overrides: str) -> dict[str, Any]:
    words = [f"data.train={train}", f"output={output}", *SMALL, *overrides]
    config: dict[str, Any] = plain(compose("train", words))
    return config


def assert_equal_state(one: Any, other: Any, where: str = "") -> None:
    """Equal to the last bit, through nested containers."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal_state(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal_state(a, b, f"{where}[{number}]")
    else:
        assert one == other, where
