"""etalumis: invert existing scientific simulators.

A simulator says what is random (:func:`sample`), what was measured (:func:`observe`) and what is worth knowing
(:func:`tag`); :func:`posterior` returns the distribution over everything random, given the measurement.
Importing the package costs NumPy; torch and everything else heavy come with the engine that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from etalumis.execution import (
    AddressBook,
    Controller,
    DensityError,
    Model,
    ModelError,
    ObservationError,
    Trace,
    TraceBatch,
    factor,
    observe,
    rejection,
    sample,
    tag,
)

if TYPE_CHECKING:
    from etalumis.inference import (
        IC,
        LMH,
        RMH,
        ImportanceSampling,
        Posterior,
        Refine,
        calibrate,
        posterior,
        posteriors,
        prior,
    )
    from etalumis.ppx.remote import RemoteModel
    from etalumis.ppx.serve import serve

__version__ = "0.1.0"

_INFERENCE = frozenset(
    {"IC", "LMH", "RMH", "ImportanceSampling", "Posterior", "Refine", "posterior", "posteriors", "prior", "calibrate"}
)
_PPX = {"RemoteModel": "remote", "serve": "serve"}

__all__ = [
    "IC",
    "LMH",
    "RMH",
    "AddressBook",
    "Controller",
    "DensityError",
    "ImportanceSampling",
    "Model",
    "ModelError",
    "ObservationError",
    "Posterior",
    "Refine",
    "RemoteModel",
    "Trace",
    "TraceBatch",
    "calibrate",
    "factor",
    "observe",
    "posterior",
    "posteriors",
    "prior",
    "rejection",
    "sample",
    "serve",
    "tag",
]


def __getattr__(name: str) -> Any:
    if name in _INFERENCE:
        from etalumis import inference

        return getattr(inference, name)
    if name in _PPX:
        return getattr(import_module(f"etalumis.ppx.{_PPX[name]}"), name)
    raise AttributeError(f"module 'etalumis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_INFERENCE, *_PPX})
