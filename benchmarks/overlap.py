"""Exchanging gradients behind the CNN's backward pass, against doing it afterwards. Needs Linux, root and iproute2.

    python -m benchmarks.overlap --json [--quick]

Two ranks on two hosts, which are network namespaces of this machine, each on a core of its own: the link between them
carries as many bits a second as ``LINK`` says, so that sending takes time but no processor, as between real nodes.
Each rank trains the paper's 3D CNN on minibatches of 20×35×35 voxels of one type, with LSTM 512 and the paper's heads
(1,020 addresses); gloo carries the exchange. Measured is an iteration without the optimiser: forward pass, backward
pass, exchange. The link is chosen so that an exchange takes about as long as half a backward pass; what overlapping
gains on another machine depends on that, and is at most the time of the exchange.

``overlap_vs_after``: iterations a second with strategy.overlap=true over those with false. ``hidden_share``: of the
seconds of an exchange, those that overlapping hides.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import common
from benchmarks.common import Result, Settings

LINK = "500mbit"
NAMES = ("overlap_vs_after", "hidden_share")
ROOT = Path(__file__).parents[1]
HOSTS = ("10.77.0.1", "10.77.0.2")
PORT = "29577"


def results(settings: Settings) -> Iterator[Result]:
    missing = [program for program in ("ip", "tc", "taskset") if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        note = f"needs root, and the programs ip, tc and taskset; missing: {', '.join(missing) or 'root'}"
        yield from (Result(name, None, None, None, None, "iterations/s", 0, note) for name in NAMES)
        return
    cores = sorted(os.sched_getaffinity(0))
    with two_hosts() as hosts, ExitStack() as ending:
        jobs = []
        for rank, (host, interface) in enumerate(hosts):
            command = ["ip", "netns", "exec", host, "taskset", "-c", str(cores[rank % len(cores)])]
            command += [sys.executable, "-m", "benchmarks.overlap_ranks", *(["--quick"] if settings.quick else [])]
            environment = os.environ | {
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": HOSTS[0],
                "MASTER_PORT": PORT,
                "GLOO_SOCKET_IFNAME": interface,
                "OMP_NUM_THREADS": "1",
            }
            jobs.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True))
            ending.callback(jobs[-1].kill)
        said, _ = jobs[0].communicate()
        if any(job.wait() for job in jobs):
            raise RuntimeError("a rank failed: its output says why")
    yield from (Result(**json.loads(line)) for line in said.splitlines())


@contextmanager
def two_hosts() -> Iterator[list[tuple[str, str]]]:
    """Network namespaces with a link between them: the name of each, and of its interface."""
    hosts = [(f"etalumis-{os.getpid()}-{n}", f"eta{os.getpid()}{'ab'[n]}") for n in range(2)]
    with ExitStack() as undo:
        for host, _ in hosts:
            _ip("netns", "add", host)
            undo.callback(_ip, "netns", "delete", host)
        (one, here), (other, there) = hosts
        _ip("link", "add", here, "netns", one, "type", "veth", "peer", "name", there, "netns", other)
        for (host, interface), address in zip(hosts, HOSTS, strict=True):
            _ip("-n", host, "address", "add", f"{address}/24", "dev", interface)
            for name in ("lo", interface):
                _ip("-n", host, "link", "set", name, "up")
            limit = ["rate", LINK, "burst", "256kb", "latency", "100ms"]
            subprocess.run(["tc", "-n", host, "qdisc", "add", "dev", interface, "root", "tbf", *limit], check=True)
        yield hosts


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


if __name__ == "__main__":
    sys.exit(common.main("overlap", results, pinned=False))
