"""Traces on disk beside pyprob 1.5.0's dataset and beside plain WebDataset: bytes, reading, and waiting for data.

Two models: Marsaglia's rejection loop of ``benchmarks.tracing``, and a τ decay seen by 20×35×35 voxels. For the second,
pyprob and WebDataset get as many draws for each trace as the decay made, and its image with noise; ours keeps the
voxels without noise and their σ, sparsely, from which fresh noise is drawn in every epoch ("resampled").

Reading ends with minibatches of 64 in memory: ours through the training's reader as columns, every one decoded and
the voxels dense, each storage chunk read from disk once per repeat; pyprob's through its distributed sampler as a
``Batch``; WebDataset's as arrays. Drawing the noise is not in it (pyprob has none to draw) and is stated apart. All
files are in the page cache, on all sides.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np

import etalumis as et
from benchmarks.common import Measure, Result, Settings, compare, main, rate, significant, single
from benchmarks.pyprob_peer import PeerUnavailableError, PyprobPeer
from benchmarks.tracing import marsaglia
from etalumis.datamodules.minibatches import Piece
from etalumis.datamodules.reading import Reader
from etalumis.datamodules.sources import JoinedDatasets
from etalumis.networks.observed import observed_values
from etalumis.simulators.detector import Detector
from etalumis.simulators.tau import Tau
from etalumis.storage import Dataset, Encoding, Origin, ShardWriter, sort
from etalumis.storage.chunk import encode_chunk
from etalumis.storage.memory import keep_memory

SHAPE = (20, 35, 35)
NOISE = 0.2
MINIBATCH = 64
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None  # before the harness pins us


def write(folder: Path, model: et.Model, count: int, chunk_size: int) -> Path:
    """A sorted dataset of ``count`` traces."""
    plain, done = folder / "plain", folder / "sorted"
    origin = Origin(model.name, num_traces=count, chunk_size=chunk_size, encoding=Encoding().to_json())
    with ShardWriter(plain, origin) as writer:
        for first in range(0, count, chunk_size):
            indices = range(first, min(first + chunk_size, count))
            traces = list(et.execution.run(model, et.execution.Prior(), {}, indices, 1))
            writer.write(et.TraceBatch.from_traces(traces, model.addresses))
    sort(plain, done, workers=0)
    return done


def on_disk(folder: Path) -> int:
    """Bytes of everything in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def minibatches(folder: Path) -> list[tuple[Piece, ...]]:
    """Slices of one storage chunk each, chunk after chunk in random order."""
    generator = np.random.default_rng(0)
    chunks = Dataset(folder).chunks
    cut = []
    for number in generator.permutation(len(chunks)).tolist():
        rows = generator.permutation(chunks[number].traces)
        cut += [(Piece(number, rows[k : k + MINIBATCH]),) for k in range(0, len(rows), MINIBATCH)]
    return cut


def reading(folder: Path, times: int = 1) -> Measure:
    """Traces per second from disk to minibatches of columns."""
    order = minibatches(folder)
    sources = JoinedDatasets([str(folder)])
    count = len(sources)
    keep_memory()  # as loader processes do

    def read(_: int) -> None:
        for _ in range(times):
            reader = Reader(sources, cache_mb=64.0)
            traces = sum(len(reader.minibatch(pieces)) for pieces in order)
            assert traces == count

    return rate(read, times * count)


def reading_with_noise(folder: Path) -> Measure:
    """The same, ending with observations as tensors, freshly drawn."""
    order = minibatches(folder)
    sources = JoinedDatasets([str(folder)])
    count = len(sources)

    def read(_: int) -> None:
        reader = Reader(sources, cache_mb=64.0)
        for pieces in order:
            batch = reader.minibatch(pieces)
            observed_values(batch, {"detector": SHAPE}, np.arange(len(batch)), seed=1, epoch=0, fresh_noise=True)

    return rate(read, count)


def draws_and_images(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Of every trace: values and addresses of its draws, and its image without noise."""
    values: list[np.ndarray] = []
    addresses: list[np.ndarray] = []
    images = []
    for batch in Dataset(folder).batches():
        values += np.split(batch.value, batch.offsets[1:-1])
        addresses += np.split(batch.address, batch.offsets[1:-1])
        (column,) = batch.observes
        images.append(np.broadcast_to(column.parameters[0], (len(column), *SHAPE)).astype(np.float32))
    return values, addresses, np.concatenate(images)


def plain_webdataset(folder: Path, count: int, data: tuple[list[np.ndarray], list[np.ndarray], np.ndarray]) -> Measure:
    """Traces per second from a tar with a sample per trace: draws, addresses and the image with noise, as .npy."""
    import webdataset

    generator = np.random.default_rng(0)
    path = folder / "plain.tar"
    with tarfile.open(path, "w") as archive:
        for key, (value, address, image) in enumerate(zip(*data, strict=True)):
            noisy = image + NOISE * generator.standard_normal(SHAPE, dtype=np.float32)
            for name, array in (("value", value), ("address", address), ("image", noisy)):
                content = BytesIO()
                np.save(content, array)
                info = tarfile.TarInfo(f"{key:09d}.{name}.npy")
                info.size = content.tell()
                content.seek(0)
                archive.addfile(info, content)

    def read(_: int) -> None:
        samples = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False).decode()
        batches = samples.to_tuple("value.npy", "address.npy", "image.npy").batched(MINIBATCH, collation_fn=list)
        assert sum(map(len, batches)) == count

    return rate(read, count)


def encodings() -> Iterator[tuple[str, Encoding]]:
    """What the bytes per trace are told for."""
    for kept, observes in (("resampled", "parameters"), ("with_values", "both")):
        for dtype in ("float32", "float16", "bfloat16"):
            for compression in ("none", "zstd"):
                suffix = "" if compression == "none" else "_zstd"
                yield (
                    f"bytes_tau_{kept}_{dtype}{suffix}",
                    Encoding(
                        observes=observes,
                        observe_dtype=dtype,
                        force_dtype=dtype != "float32",  # type: ignore[arg-type]
                        compression=compression,
                    ),  # type: ignore[arg-type]
                )


def bytes_by_encoding(folder: Path) -> Iterator[Result]:
    """Bytes per trace of a storage chunk in every encoding; the half precisions are forced."""
    batch = Dataset(folder.parent / "plain").read(0)  # types as they come
    generator = np.random.default_rng(0)
    (column,) = batch.observes
    noisy = column.parameters[0] + NOISE * generator.standard_normal((len(batch), *SHAPE), dtype=np.float32)
    drawn = type(column)(**{**vars(column), "values": noisy})
    batch = type(batch)(**{**vars(batch), "observes": (drawn,)})
    for name, encoding in encodings():
        size = len(encode_chunk(0, batch, encoding).span) / len(batch)
        yield Result(name, None, None, significant(size), None, "bytes/trace", 1)


def wait_share(folder: Path, settings: Settings) -> Result:
    """Share of the steps of a real training that is spent waiting for a minibatch; one loader process."""
    traces, epochs = (512, 2) if settings.quick else (4096, 3)
    model = et.Model(Tau(), "tau")
    data = write(folder, model, traces, 256)
    words = ["network=tau", f"data.train={data}", "data.workers=1", "data.batch_size=64", f"output={folder / 'run'}"]
    words += [f"trainer.max_epochs={epochs}", "threads=1", "callbacks.balance._target_=benchmarks.waiting.Probe"]

    def measure() -> float:
        done = subprocess.run(
            [sys.executable, "-m", "etalumis.cli", "train", *words, "resume=false"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
            preexec_fn=None if CORES is None else lambda: os.sched_setaffinity(0, CORES),
        )
        found = [line for line in done.stderr.splitlines() if line.startswith('{"wait_share"')]
        if not found:
            raise RuntimeError(f"the training did not end well:\n{done.stderr[-2000:]}")
        return float(json.loads(found[-1])["wait_share"])

    repeats = 1 if settings.quick else 3
    shares = sorted(measure() for _ in range(repeats))
    note = "τ, 8×14×14 voxels with fresh noise, minibatches of 64, after the first 4 steps; 2 cores"
    return Result("wait_share", None, 0.02, significant(shares[repeats // 2]), None, "share", repeats, note)


def with_peer(stack: contextlib.ExitStack) -> tuple[PyprobPeer | None, str]:
    """pyprob, or why it can't be had."""
    try:
        return stack.enter_context(PyprobPeer()), ""
    except PeerUnavailableError as error:
        return None, str(error)


def bytes_result(name: str, target: float, ours: float, theirs: float | None, note: str) -> Result:
    """Bytes per trace; the ratio is ours to theirs."""
    ratio = None if theirs is None else significant(ours / theirs)
    return Result(name, ratio, target, significant(ours), theirs and significant(theirs), "bytes/trace", 1, note)


def beside_pyprob(
    name: str,
    settings: Settings,
    folder: Path,
    ours: Path,
    peer: PyprobPeer | None,
    note: str,
    job: dict[str, object],
    targets: tuple[float, float],
    times: int,
) -> Iterator[Result]:
    """Rate of reading and bytes of one model; ``job`` says what pyprob shall write."""
    theirs: Measure | None = None
    size: float | None = None
    if peer is not None:
        (folder / "pyprob").mkdir()
        peer.ask("write_dataset", folder=str(folder / "pyprob"), **job)
        size = on_disk(folder / "pyprob") / int(str(job["num_traces"]))
        peer.ask("open_dataset", folder=str(folder / "pyprob"), minibatch=MINIBATCH)
        theirs = lambda: float(peer.ask("read_dataset")["rate"])  # noqa: E731 (bound here, once)
    yield compare(
        f"read_{name}_vs_pyprob",
        reading(ours, times),
        theirs,
        unit="traces/s",
        target=targets[0],
        settings=settings,
        note=note,
    )
    yield bytes_result(f"bytes_{name}_vs_pyprob", targets[1], on_disk(ours) / len(Dataset(ours)), size, note)


def results(settings: Settings) -> Iterator[Result]:
    small, large = (4096, 256) if settings.quick else (16384, 1024)
    theirs_small, theirs_large = (256, 128) if settings.quick else (2048, 512)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="etalumis-io-")))
        peer, note = with_peer(stack)
        ours = write(folder / "marsaglia", et.Model(marsaglia), small, 1024)
        job: dict[str, object] = {"model": "marsaglia", "num_traces": theirs_small}
        yield from beside_pyprob(
            "marsaglia", settings, folder / "marsaglia", ours, peer, note, job, (300.0, 0.1), 1 if settings.quick else 4
        )
        ours = write(folder / "tau", et.Model(Tau(Detector(shape=SHAPE, noise=NOISE)), "tau"), large, 256)
        data = draws_and_images(ours)
        lengths = [len(value) for value in data[0][:theirs_large]]
        np.savez(folder / "images.npz", lengths=lengths, images=data[2][:theirs_large])
        job = {"model": "images", "num_traces": theirs_large, "data": str(folder / "images.npz")}
        yield from beside_pyprob("tau", settings, folder / "tau", ours, peer, note, job, (40.0, 1 / 3), 1)
        yield compare(
            "read_tau_vs_plain_webdataset",
            reading(ours),
            plain_webdataset(folder, large, data),
            unit="traces/s",
            target=None,
            settings=settings,
        )
        yield single(
            "read_tau_with_fresh_noise",
            reading_with_noise(ours),
            unit="traces/s",
            target=None,
            settings=settings,
            note="reading, drawing 24,500 normals for each trace, float32 tensors",
        )
        yield from bytes_by_encoding(ours)
        yield wait_share(folder / "training", settings)


if __name__ == "__main__":
    sys.exit(main("io", results))
