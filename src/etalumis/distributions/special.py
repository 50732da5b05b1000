"""Special functions that the families need and that `math` and NumPy lack.

Scalar functions use `math` only, so that a front end in another language can compute the same numbers.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Real = TypeVar("Real", float, NDArray[np.float64])

TINY = 2.2250738585072014e-308  # smallest positive normal number: draws on (0, ∞) never round to 0
HUGE = 1.7976931348623157e308
ALMOST_ONE = 1.0 - 2.0**-53  # draws on (0, 1) never round to 1
EULER_GAMMA = 0.5772156649015329
LOG_SQRT_2PI = 0.9189385332046727
SQRT_HALF = 0.7071067811865476
GUMBEL_STDDEV = math.pi / math.sqrt(6.0)  # of the log of an exponential variable
_LOG_TINY = math.log(TINY)
_LOG_HUGE = math.log(HUGE)
_SQRT_HALF_PI = math.sqrt(0.5 * math.pi)


def positive_exp(t: float) -> float:
    """exp(t) as a positive finite number, whatever t."""
    if t <= _LOG_TINY:
        return TINY
    return HUGE if t >= _LOG_HUGE else math.exp(t)


def exp_moments(log_mean: float, log_ratio: float) -> tuple[float, float]:
    """Mean and standard deviation from log mean and log (second moment / mean²), clipped to finite numbers."""
    log_ratio = max(log_ratio, TINY)
    log_stddev = log_mean + 0.5 * (log_ratio + math.log(-math.expm1(-log_ratio)))
    return positive_exp(log_mean), positive_exp(log_stddev)


# --- the normal distribution's tails ------------------------------------------------------------------------


def upper_tail(x: float) -> float:
    """P(Z > x) of a standard normal, to full relative precision for large x."""
    return 0.5 * math.erfc(x * SQRT_HALF)


def normal_quantile(p: float) -> float:
    """The x with P(Z < x) = p, for 0 < p < 1, to about 1e-16 (Wichura 1988, algorithm AS 241, PPND16)."""
    q = p - 0.5
    if -0.425 <= q <= 0.425:
        r = 0.180625 - q * q
        # fmt: off
        numerator = (((((((2.5090809287301226727e+3 * r + 3.3430575583588128105e+4) * r
                          + 6.7265770927008700853e+4) * r + 4.5921953931549871457e+4) * r
                        + 1.3731693765509461125e+4) * r + 1.9715909503065514427e+3) * r
                      + 1.3314166789178437745e+2) * r + 3.3871328727963666080e+0)
        denominator = (((((((5.2264952788528545610e+3 * r + 2.8729085735721942674e+4) * r
                            + 3.9307895800092710610e+4) * r + 2.1213794301586595867e+4) * r
                          + 5.3941960214247511077e+3) * r + 6.8718700749205790830e+2) * r
                        + 4.2313330701600911252e+1) * r + 1.0)
        return q * numerator / denominator
    r = math.sqrt(-math.log(p if q < 0.0 else 1.0 - p))
    if r <= 5.0:
        r -= 1.6
        numerator = (
            (
                (
                    (
                        ((7.74545014278341407640e-4 * r + 2.27238449892691845833e-2) * r + 2.41780725177450611770e-1)
                        * r
                        + 1.27045825245236838258e0
                    )
                    * r
                    + 3.64784832476320460504e0
                )
                * r
                + 5.76949722146069140550e0
            )
            * r
            + 4.63033784615654529590e0
        ) * r + 1.42343711074968357734e0
        denominator = (
            (
                (
                    (
                        ((1.05075007164441684324e-9 * r + 5.47593808499534494600e-4) * r + 1.51986665636164571966e-2)
                        * r
                        + 1.48103976427480074590e-1
                    )
                    * r
                    + 6.89767334985100004550e-1
                )
                * r
                + 1.67638483018380384940e0
            )
            * r
            + 2.05319162663775882187e0
        ) * r + 1.0
    else:
        r -= 5.0
        numerator = (
            (
                (
                    (
                        ((2.01033439929228813265e-7 * r + 2.71155556874348757815e-5) * r + 1.24266094738807843860e-3)
                        * r
                        + 2.65321895265761230930e-2
                    )
                    * r
                    + 2.96560571828504891230e-1
                )
                * r
                + 1.78482653991729133580e0
            )
            * r
            + 5.46378491116411436990e0
        ) * r + 6.65790464350110377720e0
        denominator = (
            (
                (
                    (
                        ((2.04426310338993978564e-15 * r + 1.42151175831644588870e-7) * r + 1.84631831751005468180e-5)
                        * r
                        + 7.86869131145613259100e-4
                    )
                    * r
                    + 1.48753612908506148525e-2
                )
                * r
                + 1.36929880922735805310e-1
            )
            * r
            + 5.99832206555887937690e-1
        ) * r + 1.0
        # fmt: on
    x = numerator / denominator
    return -x if q < 0.0 else x


def mills_ratio(x: float) -> float:
    """P(Z > x) / φ(x) for x ≥ 0: erfc near zero, Laplace's continued fraction far out."""
    if x < 8.0:
        return _SQRT_HALF_PI * math.exp(0.5 * x * x) * math.erfc(x * SQRT_HALF)
    fraction = x
    for k in range(24, 0, -1):
        fraction = x + k / fraction
    return 1.0 / fraction


# Gauss–Legendre on [0, 1]: (node, weight)
_LEGENDRE = [
    (0.5 * (x + 1.0), 0.5 * weight)
    for x, weight in zip(*(part.tolist() for part in np.polynomial.legendre.leggauss(8)), strict=True)
]


def log_tail_integral(a: float, width: float) -> float:
    """log ∫₀^width exp(−a t − t²/2) dt for a ≥ 0: the mass of [a, a + width] relative to the density at a."""
    fall = width * (a + 0.5 * width)  # how far the exponent falls over the interval
    if fall < 0.5:  # a difference of tails would cancel; eight nodes are exact to 1e-16 here
        total = 0.0
        for node, weight in _LEGENDRE:
            t = node * width
            total += weight * math.exp(-t * (a + 0.5 * t))
        return math.log(width * total)
    beyond = math.exp(-fall) * mills_ratio(a + width) if fall < 745.0 else 0.0
    return math.log(mills_ratio(a) - beyond)


# --- the gamma function -------------------------------------------------------------------------------------

_lgamma = np.frompyfunc(math.lgamma, 1, 1)


def log_gamma(x: ArrayLike) -> Array:
    """log Γ(x) elementwise for x > 0: the same numbers as ``math.lgamma``, 0.1 µs an element."""
    return np.asarray(_lgamma(x), dtype=np.float64)


def digamma(x: Array) -> Array:
    """d log Γ(x) / dx elementwise for x > 0, to 1e-10: six steps of recurrence, then the asymptotic series."""
    shifted = np.zeros_like(x)
    for k in range(6):
        shifted += 1.0 / (x + k)
    y = x + 6.0
    r = 1.0 / (y * y)
    series = r * (1.0 / 12.0 - r * (1.0 / 120.0 - r * (1.0 / 252.0 - r * (1.0 / 240.0 - r / 132.0))))
    return np.asarray(np.log(y) - 0.5 / y - series - shifted)


def trigamma(x: Real) -> Real:
    """d² log Γ(x) / dx² for x > 0, to 1e-9, on numbers or elementwise: recurrence and asymptotic series."""
    shifted = 0.0 * x
    for k in range(6):
        reciprocal = 1.0 / (x + k)
        shifted = shifted + reciprocal * reciprocal
    y = x + 6.0
    r = 1.0 / (y * y)
    series = r * (1.0 / 6.0 - r * (1.0 / 30.0 - r * (1.0 / 42.0 - r / 30.0)))
    return shifted + (1.0 + 0.5 / y + series) / y
