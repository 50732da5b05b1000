"""Preloaded by the process that loader processes are forked from, and imported nowhere else."""

from etalumis.datamodules.reading import ignore_interrupts

ignore_interrupts()
