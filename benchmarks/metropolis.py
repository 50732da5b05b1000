"""Random-walk Metropolis–Hastings on the Marsaglia model in-process, beside pyprob 1.5.0; the parts are tracing's."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from benchmarks.common import Result, Settings, main
from benchmarks.tracing import beside_pyprob


def results(settings: Settings) -> Iterator[Result]:
    yield from beside_pyprob(settings, jobs=("rmh",), target=15.0)


if __name__ == "__main__":
    sys.exit(main("metropolis", results))
