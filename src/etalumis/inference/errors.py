"""What can go wrong during inference, each naming its remedy."""

from __future__ import annotations


class InferenceError(RuntimeError):
    """An engine can't give what was asked of it."""
