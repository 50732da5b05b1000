"""What a sort knows of its sources: that they changed, which of their executions failed, what they can't give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import etalumis as et
from etalumis.distributions import Normal, Uniform
from etalumis.storage import DatasetError, simulate, sort

pytestmark = pytest.mark.timeout(60)
MEMORY_MB = 160


def shifted(by: float) -> Callable[[], et.Model]:
    def simulator() -> float:
        u = et.sample(Uniform(0.0, 1.0), name="u")
        if by < 0.0 and u > 0.9:
            raise RuntimeError("above 0.9")
        et.observe(Normal(u + by, 1.0), name="y")
        return float(u)

    return lambda: et.Model(simulator, "shifted")


def make(path: Path, by: float = 0.0, count: int = 40, seed: int = 0, **settings: Any) -> Path:
    simulate(shifted(by), path, count, model="shifted", seed=seed, workers=0, chunk_size=10, **settings)
    return path


def test_a_complete_sort_of_other_traces_is_refused(tmp_path: Path) -> None:
    """The inputs were made anew, with other code and the same settings."""
    make(tmp_path / "a", 0.0)
    sort(tmp_path / "a", tmp_path / "s", workers=0, memory_mb=MEMORY_MB)
    make(tmp_path / "b", 1.0)
    for path in (tmp_path / "a").iterdir():
        path.write_bytes((tmp_path / "b" / path.name).read_bytes())
    with pytest.raises(DatasetError, match=r"other settings \(sources\)"):
        sort(tmp_path / "a", tmp_path / "s", workers=0, memory_mb=MEMORY_MB)


def test_a_complete_sort_with_other_shards_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a")
    sort(tmp_path / "a", tmp_path / "s", workers=0, memory_mb=MEMORY_MB)
    with pytest.raises(DatasetError, match=r"other settings \(shard_bytes\)"):
        sort(tmp_path / "a", tmp_path / "s", workers=0, memory_mb=MEMORY_MB, shard_bytes=5000)


def test_an_unfinished_sort_of_other_traces_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a", 0.0)

    def stop(step: str, total: int) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sort(tmp_path / "a", tmp_path / "s", workers=0, memory_mb=MEMORY_MB, progress=stop)
    make(tmp_path / "b", 1.0)
    for path in (tmp_path / "a").iterdir():
        path.write_bytes((tmp_path / "b" / path.name).read_bytes())
    with pytest.raises(DatasetError, match=r"unfinished sort with other settings \(origin, inputs\)"):
        sort(tmp_path / "a", tmp_path / "s", workers=0, memory_mb=MEMORY_MB)
