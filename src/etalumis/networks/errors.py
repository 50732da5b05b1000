"""What can go wrong with a network, each error naming its remedy."""

from __future__ import annotations


class ProposalError(ValueError):
    """A proposal cannot reach a value, or is not a number."""


class NetworkConfigError(ValueError):
    """The configuration of a network, or the data it is built for, makes no sense."""


class CheckpointError(RuntimeError):
    """A checkpoint file is damaged, or belongs to something else."""
