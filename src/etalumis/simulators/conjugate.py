"""Models of normal variables whose posteriors are exact by linear algebra and enumeration, beside those answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import Categorical, Normal
from etalumis.execution import observe, sample

Array = NDArray[np.float64]


class LinearGaussian:
    """A chain of normal variables ``x0``, ``x1``, …, each seen with noise as ``obs0``, ``obs1``, ….

    x₀ ~ Normal(0, 1), xₖ ~ Normal(a xₖ₋₁, s) and yₖ ~ Normal(xₖ, noise).

    Args:
        dimensions: length of the chain.
        coefficient: a.
        stddev: s.
        noise: standard deviation of the observations.
    """

    def __init__(self, dimensions: int = 10, coefficient: float = 0.9, stddev: float = 0.5, noise: float = 1.0) -> None:
        self.dimensions = int(dimensions)
        self.coefficient, self.stddev, self.noise = float(coefficient), float(stddev), float(noise)

    def __call__(self) -> float:
        """Run the chain; returns its last variable."""
        x: float = sample(Normal(0.0, 1.0), name="x0")
        observe(Normal(x, self.noise), name="obs0")
        for k in range(1, self.dimensions):
            x = sample(Normal(self.coefficient * x, self.stddev), name=f"x{k}")
            observe(Normal(x, self.noise), name=f"obs{k}")
        return x

    def posterior(self, observations: Sequence[float]) -> tuple[Array, Array]:
        """Mean (dimensions,) and covariance (dimensions, dimensions) of the normal posterior of all variables."""
        y = self._checked(observations)
        covariance = np.asarray(np.linalg.inv(self._precision() + np.eye(self.dimensions) / self.noise**2), np.float64)
        return covariance @ y / self.noise**2, covariance

    def log_evidence(self, observations: Sequence[float]) -> float:
        """Log density of all observations with the variables integrated out."""
        y = self._checked(observations)
        covariance = np.linalg.inv(self._precision()) + np.eye(self.dimensions) * self.noise**2
        _, log_determinant = np.linalg.slogdet(2.0 * math.pi * covariance)
        return float(-0.5 * (y @ np.linalg.solve(covariance, y) + log_determinant))

    def _precision(self) -> Array:
        """Of the prior: its square root has the standardised innovations as rows."""
        root = np.eye(self.dimensions) - np.diag(np.full(self.dimensions - 1, self.coefficient), -1)
        root[1:] /= self.stddev
        return np.asarray(root.T @ root)

    def _checked(self, observations: Sequence[float]) -> Array:
        y = np.asarray(observations, dtype=np.float64)
        if y.shape != (self.dimensions,):
            raise ValueError(f"the chain has {self.dimensions} observations; got {y.shape}")
        return y


class UnknownMixture:
    """Points from a mixture of normal distributions whose number of components is unknown.

    Draws ``count`` (an index into ``counts``: 1, 2, …), the components' means ``mean0``, ``mean1``, … and for each
    point its ``component0``, ``component1``, …; observes ``obs0``, ``obs1``, ….

    Args:
        points: to observe; exact answers enumerate max_components^points assignments.
        max_components: as many at most; uniform from 1 on.
        spread: standard deviation of the means, around 0.
        noise: standard deviation of the points of a component.
    """

    def __init__(self, points: int = 4, max_components: int = 3, spread: float = 2.0, noise: float = 1.0) -> None:
        self.points = int(points)
        self.counts = tuple(range(1, int(max_components) + 1))
        self.spread, self.noise = float(spread), float(noise)
        self._count = Categorical([1.0 / len(self.counts)] * len(self.counts))
        self._component = [Categorical([1.0 / count] * count) for count in self.counts]

    def __call__(self) -> int:
        """Draw means and components; returns the number of components."""
        index: int = sample(self._count, name="count")
        means = [sample(Normal(0.0, self.spread), name=f"mean{k}") for k in range(self.counts[index])]
        for n in range(self.points):
            component = sample(self._component[index], name=f"component{n}")
            observe(Normal(means[component], self.noise), name=f"obs{n}")
        return self.counts[index]

    def posterior(self, observations: Sequence[float]) -> Array:
        """P(count | observations), (max_components,), by enumeration of the assignments."""
        weights = np.zeros(len(self.counts))
        for index, log_joint, _ in self._assignments(observations):
            weights[index] += math.exp(log_joint)
        return np.asarray(weights / weights.sum())

    def mean(self, observations: Sequence[float]) -> float:
        """E[mean0 | observations]: the components' labels are exchangeable."""
        total = weighted = 0.0
        for _, log_joint, mean in self._assignments(observations):
            total += math.exp(log_joint)
            weighted += math.exp(log_joint) * mean
        return weighted / total

    def log_evidence(self, observations: Sequence[float]) -> float:
        """Log density of the points with components and means summed and integrated out."""
        return float(np.logaddexp.reduce([log_joint for _, log_joint, _ in self._assignments(observations)]))

    def _assignments(self, observations: Sequence[float]) -> Iterator[tuple[int, float, float]]:
        """For each count and assignment of points: the count's index, log p(both, y), and E[mean0 | all of them]."""
        y = np.asarray(observations, dtype=np.float64)
        if y.shape != (self.points,):
            raise ValueError(f"the mixture has {self.points} points; got {y.shape}")
        for index, count in enumerate(self.counts):
            log_prior = -math.log(len(self.counts)) - self.points * math.log(count)
            for assignment in itertools.product(range(count), repeat=self.points):
                members = [y[[k == component for k in assignment]] for component in range(count)]
                log_joint = log_prior + sum(self._log_marginal(own) for own in members)
                first = members[0]
                yield index, log_joint, float(first.sum() / (len(first) + (self.noise / self.spread) ** 2))

    def _log_marginal(self, y: Array) -> float:
        """Log density of the points of one component with its mean integrated out."""
        n = len(y)
        ratio = (self.spread / self.noise) ** 2
        square = float(y @ y - ratio * y.sum() ** 2 / (1.0 + n * ratio)) / self.noise**2
        return -0.5 * (square + math.log1p(n * ratio) + n * math.log(2.0 * math.pi * self.noise**2))
