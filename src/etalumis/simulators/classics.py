"""Small models with known posteriors: what inference engines are held against.

Each model stands beside its exact answer: ``gaussian`` and ``marsaglia`` with ``gaussian_posterior``,
``branching`` with ``branching_posterior``, and the classes with methods ``posterior`` and ``log_evidence``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etalumis.distributions import Categorical, Normal, Poisson, Uniform
from etalumis.execution import observe, sample, tag

Array = NDArray[np.float64]

PRIOR_MEAN, PRIOR_STDDEV = 1.0, math.sqrt(5.0)
LIKELIHOOD_STDDEV = math.sqrt(2.0)


# --- Gaussian with unknown mean -------------------------------------------------------------------


def gaussian() -> float:
    """Unknown mean ``mu`` of two observations ``obs0`` and ``obs1``; tags ``mu_squared``."""
    mu: float = sample(Normal(PRIOR_MEAN, PRIOR_STDDEV), name="mu")
    observe(Normal(mu, LIKELIHOOD_STDDEV), name="obs0")
    observe(Normal(mu, LIKELIHOOD_STDDEV), name="obs1")
    tag(mu**2, name="mu_squared")
    return mu


def marsaglia() -> float:
    """The model of :func:`gaussian` with its mean drawn by Marsaglia's polar method: a rejection loop.

    ``mu`` is a tag here: each pass draws two uniform numbers, of which the last pair makes the mean.
    """
    mu = _polar_normal(PRIOR_MEAN, PRIOR_STDDEV)
    observe(Normal(mu, LIKELIHOOD_STDDEV), name="obs0")
    observe(Normal(mu, LIKELIHOOD_STDDEV), name="obs1")
    tag(mu, name="mu")
    return mu


def _polar_normal(mean: float, stddev: float) -> float:
    """Marsaglia and Bray, SIAM Review 6 (1964) 260; a pass is accepted with probability π/4."""
    while True:
        x: float = sample(Uniform(-1.0, 1.0))
        y: float = sample(Uniform(-1.0, 1.0))
        s = x * x + y * y
        if 0.0 < s < 1.0:
            return mean + stddev * x * math.sqrt(-2.0 * math.log(s) / s)


def gaussian_posterior(obs0: float, obs1: float) -> tuple[float, float]:
    """Mean and standard deviation of the normal posterior of ``mu`` (7.25 and 0.9129 for 8 and 9)."""
    precision = PRIOR_STDDEV**-2 + 2.0 * LIKELIHOOD_STDDEV**-2
    mean = (PRIOR_MEAN * PRIOR_STDDEV**-2 + (obs0 + obs1) * LIKELIHOOD_STDDEV**-2) / precision
    return mean, precision**-0.5


def gaussian_log_evidence(obs0: float, obs1: float) -> float:
    """Log density of both observations with ``mu`` integrated out."""
    # Their half sum and half difference are independent.
    noise = LIKELIHOOD_STDDEV / math.sqrt(2.0)
    half_sum = _log_normal(0.5 * (obs0 + obs1), PRIOR_MEAN, math.hypot(PRIOR_STDDEV, noise))
    half_difference = _log_normal(0.5 * (obs0 - obs1), 0.0, noise)
    return half_sum + half_difference - math.log(2.0)


def _log_normal(x: float, mean: float, stddev: float) -> float:
    return -0.5 * ((x - mean) / stddev) ** 2 - math.log(stddev) - 0.5 * math.log(2.0 * math.pi)


# --- branching ------------------------------------------------------------------------------------

BRANCHING_RATE = 4.0
BRANCHING_THRESHOLD = 4
BRANCHING_CONSTANT = 6.0
_MANY = 100  # counts beyond it have probability below 1e-90


def branching() -> int:
    """A second draw happens only where the first, ``r``, is at most 4; observes the count ``obs0``."""
    r: int = sample(Poisson(BRANCHING_RATE), name="r")
    if r > BRANCHING_THRESHOLD:
        rate = BRANCHING_CONSTANT
    else:
        rate = 1.0 + fibonacci(3 * r) + sample(Poisson(BRANCHING_RATE))
    observe(Poisson(float(rate)), name="obs0")
    return r


def fibonacci(n: int) -> int:
    """1, 1, 1, 2, 3, 5, … for n = 0, 1, 2, 3, 4, 5, …: the sequence of the model starts with an extra 1."""
    a, b = 1, 1
    for _ in range(n - 1):
        a, b = b, a + b
    return a


def branching_posterior(observed: int) -> Array:
    """P(r | obs0 = observed) for r = 0, 1, …, by enumeration."""
    joint = _branching_joint(observed)
    return np.asarray(joint / joint.sum())


def branching_log_evidence(observed: int) -> float:
    """log P(obs0 = observed), by enumeration."""
    return math.log(_branching_joint(observed).sum())


def _branching_joint(observed: int) -> Array:
    counts = range(_MANY)
    prior = np.array([_poisson(n, BRANCHING_RATE) for n in counts])
    likelihood = [
        sum(prior[k] * _poisson(observed, 1.0 + fibonacci(3 * r) + k) for k in counts)
        for r in range(BRANCHING_THRESHOLD + 1)
    ]
    likelihood += [_poisson(observed, BRANCHING_CONSTANT)] * (_MANY - len(likelihood))
    return np.asarray(prior * np.array(likelihood))


def _poisson(count: int, rate: float) -> float:
    return math.exp(count * math.log(rate) - rate - math.lgamma(count + 1.0))


# --- hidden Markov model --------------------------------------------------------------------------


class HiddenMarkov:
    """A chain of hidden states with Gaussian emissions: ``state0`` emits ``obs0``, then goes to ``state1``.

    Args:
        steps: length of the chain.
        initial: probabilities of the first state, (K,).
        transition: row i holds the probabilities of the state after state i, (K, K).
        means: of the emission in each state, (K,).
        stddev: of every emission.
    """

    def __init__(
        self,
        steps: int = 16,
        initial: Sequence[float] = (1 / 3, 1 / 3, 1 / 3),
        transition: Sequence[Sequence[float]] = ((0.1, 0.5, 0.4), (0.2, 0.2, 0.6), (0.15, 0.15, 0.7)),
        means: Sequence[float] = (-1.0, 1.0, 0.0),
        stddev: float = 1.0,
    ) -> None:
        self.steps = int(steps)
        self.initial = np.array(initial, dtype=np.float64)
        self.transition = np.array(transition, dtype=np.float64)
        self.means = np.array(means, dtype=np.float64)
        self.stddev = float(stddev)
        states = len(self.initial)
        if self.transition.shape != (states, states) or self.means.shape != (states,):
            raise ValueError(
                f"{states} initial probabilities need a {states}×{states} transition matrix and {states} "
                f"means; got shapes {self.transition.shape} and {self.means.shape}"
            )
        # Distributions are made once: a step of the model only looks them up.
        self._first = Categorical(self.initial.tolist())
        self._next = [Categorical(row) for row in self.transition.tolist()]
        self._emission = [Normal(mean, self.stddev) for mean in self.means.tolist()]

    def __call__(self) -> int:
        """Run the chain; returns the last state."""
        state: int = sample(self._first, name="state0")
        observe(self._emission[state], name="obs0")
        for step in range(1, self.steps):
            state = sample(self._next[state], name=f"state{step}")
            observe(self._emission[state], name=f"obs{step}")
        return state

    def posterior(self, observations: Sequence[float]) -> Array:
        """P(state at each step | all observations), (steps, K), by the forward–backward recursion."""
        forward, _ = self._filter(observations)
        backward = np.ones_like(forward)
        likelihood = self._likelihood(observations)
        for step in range(self.steps - 2, -1, -1):
            message = self.transition @ (likelihood[step + 1] * backward[step + 1])
            backward[step] = message / message.sum()
        smoothed = forward * backward
        return np.asarray(smoothed / smoothed.sum(axis=1, keepdims=True))

    def log_evidence(self, observations: Sequence[float]) -> float:
        """Log density of all observations with the states summed out."""
        return self._filter(observations)[1]

    def _filter(self, observations: Sequence[float]) -> tuple[Array, float]:
        likelihood = self._likelihood(observations)
        forward = np.empty_like(likelihood)
        predicted, log_evidence = self.initial, 0.0
        for step in range(self.steps):
            joint = predicted * likelihood[step]
            evidence = float(joint.sum())
            log_evidence += math.log(evidence)
            forward[step] = joint / evidence
            predicted = forward[step] @ self.transition
        return forward, log_evidence

    def _likelihood(self, observations: Sequence[float]) -> Array:
        """Emission densities, (steps, K)."""
        y = np.asarray(observations, dtype=np.float64)
        if y.shape != (self.steps,):
            raise ValueError(f"the chain has {self.steps} observations; got {y.shape}")
        z = (y[:, None] - self.means) / self.stddev
        return np.asarray(np.exp(-0.5 * z * z) / (self.stddev * math.sqrt(2.0 * math.pi)))


# --- mini-captcha ---------------------------------------------------------------------------------

# Letters of three columns and five rows.
_FONT = {
    "E": ("###", "#..", "##.", "#..", "###"),
    "F": ("###", "#..", "##.", "#..", "#.."),
    "H": ("#.#", "#.#", "###", "#.#", "#.#"),
    "I": ("###", ".#.", ".#.", ".#.", "###"),
    "L": ("#..", "#..", "#..", "#..", "###"),
    "O": ("###", "#.#", "#.#", "#.#", "###"),
    "T": ("###", ".#.", ".#.", ".#.", ".#."),
    "U": ("#.#", "#.#", "#.#", "#.#", "###"),
}
_HEIGHT, _PITCH = 5, 4


class MiniCaptcha:
    """A word of unknown length and letters, seen as a noisy image: draws ``num_letters`` (an index into
    ``lengths``) and ``letter0``, ``letter1``, … (indices into ``alphabet``), observes ``image``.

    Args:
        alphabet: letters to choose from, out of E F H I L O T U; uniform.
        max_letters: words have 1 to this many letters; uniform.
        noise: standard deviation per pixel; ink has the value 1.
    """

    def __init__(self, alphabet: str = "EFHILOTU", max_letters: int = 3, noise: float = 0.8) -> None:
        unknown = set(alphabet) - set(_FONT)
        if unknown or not alphabet:
            raise ValueError(f"alphabet must be letters of {''.join(_FONT)}; got {alphabet!r}")
        self.alphabet = alphabet
        self.lengths = tuple(range(1, int(max_letters) + 1))
        self.noise = float(noise)
        self.shape = (_HEIGHT, _PITCH * len(self.lengths) - 1)
        self._glyphs = [np.array([[c == "#" for c in row] for row in _FONT[a]], np.float64) for a in alphabet]
        self._length = Categorical([1.0 / len(self.lengths)] * len(self.lengths))
        self._letter = Categorical([1.0 / len(alphabet)] * len(alphabet))

    def __call__(self) -> str:
        """Draw a word and observe its image; returns the word."""
        length = self.lengths[sample(self._length, name="num_letters")]
        letters = [sample(self._letter, name=f"letter{i}") for i in range(length)]
        observe(Normal(self.render(letters), self.noise), name="image")
        return self.word(letters)

    def word(self, letters: Sequence[int]) -> str:
        """Indices into the alphabet as a string."""
        return "".join(self.alphabet[i] for i in letters)

    def render(self, letters: Sequence[int]) -> Array:
        """The image without noise, shape ``shape``; words start at the left edge."""
        image = np.zeros(self.shape)
        for place, letter in enumerate(letters):
            image[:, place * _PITCH : place * _PITCH + _PITCH - 1] = self._glyphs[letter]
        return image

    def posterior(self, image: ArrayLike) -> dict[str, float]:
        """P(word | image) of all words, by enumeration."""
        words, log_joint = self._log_joint(image)
        weights = np.exp(log_joint - log_joint.max())
        return dict(zip(words, (weights / weights.sum()).tolist(), strict=True))

    def log_evidence(self, image: ArrayLike) -> float:
        """Log density of the image with the words summed out."""
        _, log_joint = self._log_joint(image)
        return float(np.logaddexp.reduce(log_joint))

    def _log_joint(self, image: ArrayLike) -> tuple[list[str], Array]:
        pixels = np.asarray(image, dtype=np.float64)
        if pixels.shape != self.shape:
            raise ValueError(f"images have shape {self.shape}; got {pixels.shape}")
        letters = range(len(self.alphabet))
        words = [w for n in self.lengths for w in itertools.product(letters, repeat=n)]
        log_prior = [-math.log(len(self.lengths)) - len(w) * math.log(len(self.alphabet)) for w in words]
        residuals = (pixels - np.stack([self.render(w) for w in words])) / self.noise
        log_pixel = -0.5 * residuals**2 - math.log(self.noise) - 0.5 * math.log(2.0 * math.pi)
        return [self.word(w) for w in words], np.array(log_prior) + log_pixel.sum(axis=(1, 2))
