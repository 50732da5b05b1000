"""Distribution families: parameters, one shared sampling algorithm, densities, kernels and coordinates each.

Families are looked up by name (:data:`DISTRIBUTIONS`) or by their code on the wire (:data:`BY_CODE`).
"""

from __future__ import annotations

from etalumis.distributions.base import Coordinates, Distribution
from etalumis.distributions.bernoulli import Bernoulli
from etalumis.distributions.beta import Beta
from etalumis.distributions.binomial import Binomial
from etalumis.distributions.categorical import Categorical
from etalumis.distributions.exponential import Exponential
from etalumis.distributions.gamma import Gamma
from etalumis.distributions.lognormal import LogNormal
from etalumis.distributions.mixture import Mixture
from etalumis.distributions.normal import Normal
from etalumis.distributions.poisson import Poisson
from etalumis.distributions.stream import OBSERVE, SAMPLE, Stream, derived_seed
from etalumis.distributions.truncated_normal import TruncatedNormal
from etalumis.distributions.uniform import Uniform
from etalumis.distributions.uniform_integer import UniformInteger
from etalumis.distributions.weibull import Weibull

FAMILIES: tuple[type[Distribution], ...] = (
    Normal,
    Uniform,
    Categorical,
    Poisson,
    Bernoulli,
    Beta,
    Exponential,
    Gamma,
    LogNormal,
    Binomial,
    Weibull,
    TruncatedNormal,
    Mixture,
    UniformInteger,
)
DISTRIBUTIONS: dict[str, type[Distribution]] = {family.family: family for family in FAMILIES}
BY_CODE: dict[int, type[Distribution]] = {family.code: family for family in FAMILIES}

__all__ = [
    "BY_CODE",
    "DISTRIBUTIONS",
    "FAMILIES",
    "OBSERVE",
    "SAMPLE",
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Coordinates",
    "Distribution",
    "Exponential",
    "Gamma",
    "LogNormal",
    "Mixture",
    "Normal",
    "Poisson",
    "Stream",
    "TruncatedNormal",
    "Uniform",
    "UniformInteger",
    "Weibull",
    "derived_seed",
]
