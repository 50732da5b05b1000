"""Warnings that a command says in its own words."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

ENGINES = "etalumis.inference"


@contextmanager
def errors_only(name: str) -> Iterator[None]:
    """A logger tells errors only, until the command is over: programs may run several."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
