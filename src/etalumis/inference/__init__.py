"""Inference engines, the posterior they return, and how far to trust it. Networks are imported only by IC."""

from etalumis.inference.api import posterior, posteriors, prior
from etalumis.inference.calibration import Calibration, calibrate
from etalumis.inference.compilation import IC, NetworkMoves
from etalumis.inference.engine import Engine
from etalumis.inference.errors import InferenceError
from etalumis.inference.importance import ImportanceSampling
from etalumis.inference.metropolis import LMH, RMH
from etalumis.inference.posterior import Posterior
from etalumis.inference.refinement import Refine

__all__ = [
    "IC",
    "LMH",
    "RMH",
    "Calibration",
    "Engine",
    "ImportanceSampling",
    "InferenceError",
    "NetworkMoves",
    "Posterior",
    "Refine",
    "calibrate",
    "posterior",
    "posteriors",
    "prior",
]
