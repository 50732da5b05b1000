"""PPX: the protocol by which simulators in any language become probabilistic programs."""
