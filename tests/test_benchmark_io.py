"""The parts of ``benchmarks.io`` that need no peer, on few traces."""

import sys
from pathlib import Path

import pytest

import etalumis as et
from etalumis.simulators.detector import Detector
from etalumis.simulators.tau import Tau
from etalumis.storage import Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import io
from benchmarks.common import Settings
from benchmarks.tracing import marsaglia

pytest.importorskip("zstandard")


def test_reading_and_bytes_without_a_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "keep_memory", lambda: None)  # the tests' process shall stay as it is
    data = io.write(tmp_path, et.Model(marsaglia), 300, 100)
    assert Dataset(data).manifest.origin.sources
    assert sum(len(piece.rows) for minibatch in io.minibatches(data) for piece in minibatch) == 300
    assert io.reading(data, times=2)() > 0.0
    job: dict[str, object] = {"model": "marsaglia", "num_traces": 1}
    settings = Settings(quick=True)
    read, size = io.beside_pyprob("marsaglia", settings, tmp_path, data, None, "no peer", job, (300.0, 0.1), 1)
    assert (read.name, read.ratio, read.theirs, read.target) == ("read_marsaglia_vs_pyprob", None, None, 300.0)
    assert (size.name, size.ratio, size.note) == ("bytes_marsaglia_vs_pyprob", None, "no peer")
    assert 60.0 < size.ours < 400.0
    assert io.bytes_result("b", 0.1, 50.0, 1000.0, "").ratio == 0.05


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset")
    monkeypatch.setattr(io, "SHAPE", (6, 10, 10))
    monkeypatch.setattr(io, "keep_memory", lambda: None)
    data = io.write(tmp_path, et.Model(Tau(Detector(shape=io.SHAPE, noise=io.NOISE)), "tau"), 64, 32)
    values, addresses, images = io.draws_and_images(data)
    assert len(values) == len(addresses) == len(images) == 64
    assert images.shape[1:] == io.SHAPE
    assert io.plain_webdataset(tmp_path, 64, (values, addresses, images))() > 0.0
    assert io.reading_with_noise(data)() > 0.0
    sizes = {result.name: result.ours for result in io.bytes_by_encoding(data)}
    assert sizes["bytes_tau_resampled_bfloat16_zstd"] < sizes["bytes_tau_resampled_float32"]
    assert sizes["bytes_tau_resampled_float32"] < sizes["bytes_tau_with_values_float32"]
