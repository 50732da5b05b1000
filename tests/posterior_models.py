"""A model with names of every kind, for the tests of posteriors."""

from typing import Any

import numpy as np

import etalumis as et
from etalumis.distributions import Bernoulli, Categorical, Normal, Poisson


def varied() -> dict[str, Any]:
    """Names that are missing, repeated, arrays; tags of every storable kind."""
    count = et.sample(Poisson(2.0), name="count")
    for _ in range(count):
        et.sample(Normal(0.0, 1.0), name="step")
    for k in range(3):
        et.sample(Normal(float(k), 1.0), name="three")
    et.sample(Normal(np.zeros(2), 1.0), name="pair")
    if et.sample(Bernoulli(0.5), name="flag"):
        et.sample(Categorical([0.2, 0.8]), name="sometimes")
    et.tag(2.0 * count, name="double")
    et.tag("even" if count % 2 == 0 else "odd", name="parity")
    et.tag(bool(count), name="any")
    return {"count": count}
