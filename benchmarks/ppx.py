"""Speed of simulators driven over PPX: one round trip a draw, one for many executions, and what a message costs.

The simulators are those of ``ppx_simulators.cpp``, built here with the C++ front end that the package ships; where
no compiler or ZeroMQ header is found, Python models are served instead and the notes say so. Engine and simulators
share one core, but for ``workers_2_vs_1``, where simulators get all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import etalumis as et
from benchmarks.common import Measure, Result, Settings, compare, main, rate, single
from etalumis.distributions import Normal, Uniform
from etalumis.ppx import messages as m
from etalumis.ppx.codec import Decoder, Encoder

HERE = Path(__file__).parent
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-optimize-sibling-calls"]
LIBRARIES = ["-rdynamic", "-lzmq", "-ldl", "-pthread"]
DRAWS = 300  # of ``many_draws``


# --- the same simulators in Python, where C++ can't be had --------------------------------------------------------


def marsaglia() -> float:
    while True:
        x = et.sample(Uniform(-1.0, 1.0))
        y = et.sample(Uniform(-1.0, 1.0))
        s = x * x + y * y
        if 0.0 < s < 1.0:
            et.observe(Normal(x, 2.0**0.5), name="obs0")
            et.observe(Normal(x, 2.0**0.5), name="obs1")
            return float(x)


def many_draws() -> float:
    total: float = sum(et.sample(Uniform(0.0, 1.0)) for _ in range(DRAWS))
    et.observe(Normal(total, 1.0), name="y")
    return total


def busy() -> float:
    x: float = et.sample(Normal(0.0, 1.0), name="x")
    end = time.perf_counter() + 1e-3
    while time.perf_counter() < end:
        pass
    et.observe(Normal(x, 1.0), name="y")
    return x


MODELS = {f.__name__: f for f in (marsaglia, many_draws, busy)}


class Simulators:
    """How to launch the simulators, in C++ or in Python."""

    def __init__(self, folder: Path) -> None:
        self.note = ""
        self._program: Path | None = folder / "ppx_simulators"
        compiler = shutil.which("c++") or shutil.which("g++")
        ask = [sys.executable, "-m", "etalumis.ppx", "--includedir"]
        include = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
        source = str(HERE / "ppx_simulators.cpp")
        build = [str(compiler), *FLAGS, f"-I{include}", source, "-o", str(self._program), *LIBRARIES]
        if compiler is None or subprocess.run(build, capture_output=True, check=False).returncode:
            self._program = None
            self.note = "simulators in Python: no C++ compiler or no zmq.h here"

    def launch(self, model: str, workers: int = 1, scripted: bool = True) -> et.RemoteModel:
        """A remote model; both ends on the cores of this process."""
        words = [sys.executable, "-m", "benchmarks.ppx", "serve"] if self._program is None else [str(self._program)]
        return et.RemoteModel(
            command=[*words, model, "{address}"], workers=workers, scripted=scripted, directory=HERE.parent
        )

    def address_us(self) -> float | None:
        """Microseconds for a known address of eight frames in C++."""
        if self._program is None:
            return None
        words = [str(self._program), "address", "200000"]
        return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[0])


def traces(model: et.RemoteModel, per: int = 1) -> Measure:
    """Executions per second, times ``per``; as many as take about a quarter of a second."""
    probe = rate(lambda count: [len(b) for b in model.batches(range(count), 1)], 4)
    probe()
    count = max(4, int(0.1 * max(probe(), probe())))
    count = max(4, int(0.25 * rate(lambda n: [len(b) for b in model.batches(range(n), 1)], count)()))
    measure = rate(lambda n: [len(b) for b in model.batches(range(n), 1)], count)
    return lambda: per * measure()


def codec() -> float:
    """Microseconds to encode and decode a Sample and its SampleResult."""
    ours, theirs, hears, heard = Encoder(), Encoder(), Decoder(), Decoder()
    address = "[forward()+0x204; simulate(Event&)+0x1f3; shower(Particle const&, double)+0x3f]"
    count = 5000
    start = time.perf_counter()
    for k in range(count):
        heard.decode(ours.encode(m.Sample(address, "", Normal(0.5 * k, 2.0))))
        hears.decode(theirs.encode(m.SampleResult(0.25 * k)))
    return 1e6 * (time.perf_counter() - start) / count


@contextlib.contextmanager
def all_cores(cores: set[int]) -> Iterator[None]:
    """Undo the pinning for a while."""
    pinned = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, pinned)


def results(settings: Settings) -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as folder:
        simulators = Simulators(Path(folder))
        note = simulators.note
        with (
            simulators.launch("many_draws") as scripted,
            simulators.launch("many_draws", scripted=False) as interactive,
        ):
            fast, slow = traces(scripted, DRAWS), traces(interactive, DRAWS)
            yield compare(
                "scripted_vs_interactive", fast, slow, unit="draws/s", target=15.0, settings=settings, note=note
            )
            yield single(
                "interactive_draws_per_s", slow, unit="draws/s", target=8000.0, settings=settings, note=note, rounds=2
            )
        with simulators.launch("marsaglia") as model:
            yield single(
                "scripted_prior_traces_per_s",
                traces(model),
                unit="traces/s",
                target=48_000.0,
                settings=settings,
                note=note,
                rounds=2,
            )
        if hasattr(os, "sched_setaffinity"):
            with (
                all_cores(CORES),
                simulators.launch("busy", workers=2) as two,
                simulators.launch("busy") as one,
            ):
                yield compare(
                    "workers_2_vs_1",
                    traces(two),
                    traces(one),
                    unit="traces/s",
                    target=1.7,
                    settings=settings,
                    note=note or f"{len(CORES)} cores",
                )
        yield single("codec_us", codec, unit="us", target=15.0, settings=settings, rounds=2)
        if simulators.address_us() is not None:
            yield single("address_us", lambda: simulators.address_us() or 0.0, unit="us", target=2.0, settings=settings)


CORES: set[int] = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()

if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        et.serve(MODELS[sys.argv[2]], sys.argv[3], idle=60.0)
        sys.exit(0)
    sys.exit(main("ppx", results))
