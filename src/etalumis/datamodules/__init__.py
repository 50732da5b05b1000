"""Data for training. The data module is in :mod:`.traces`; what its processes run, without Lightning, beside it."""
