"""What can go wrong while a model runs, each naming its remedy."""

from __future__ import annotations


class ModelError(RuntimeError):
    """A model said something that can't be a probabilistic program."""


class ObservationError(ValueError):
    """The observations given to an engine don't fit what the model observes."""


class DensityError(ArithmeticError):
    """A log density is not a number, or infinite."""


class StorableError(TypeError):
    """A tag or result is of a kind that no file can keep safely."""


class Reject(BaseException):
    """Raised by a controller to end an execution early; the trace is kept as rejected, with zero weight."""
