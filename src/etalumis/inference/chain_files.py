"""Chains on disk: kept states are written as they come, and an interrupted chain goes on as if nothing had happened.

A chain's folder holds blocks of kept states and its own state, each a saved :class:`Posterior` that appears whole or
not at all. Random numbers are counted, not streamed, so the present values, some counts and the step sizes are all
that a chain is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import Observations, Simulator, TraceBatch
from etalumis.inference.chain import Chain
from etalumis.inference.errors import InferenceError
from etalumis.inference.executions import HELD, join
from etalumis.inference.posterior import Posterior

_SECONDS = 30.0  # between two saves; what is lost where a run is killed
_BLOCK = 16 * HELD  # distinct states after which they are written, whatever the time
_STATE = "state"


class ChainFolder:
    """Where one chain lives.

    Args:
        path: the folder.
        identity: what the chain is of; a chain of anything else is refused.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity = json.loads(json.dumps(identity))

    def load(self, chain: Chain, accepted_names: set[str]) -> dict[str, Any] | None:
        """Bring a chain to where it was saved; returns its counts, or None where there is nothing to go on from.

        Raises:
            InferenceError: the folder holds another chain, or a damaged one.
        """
        states = self._states()
        if not states:
            return None
        saved = Posterior.load(states[-1])
        state = saved.info
        changed = sorted(k for k, v in self._identity.items() if state["identity"].get(k) != v)
        if changed:
            raise InferenceError(
                f"{self.path} holds a chain with other {', '.join(changed)}; give its settings to go on, or choose "
                "another folder"
            )
        accepted_names.update(state["names"])
        try:
            chain.restore(saved.traces, state["chain"])
        except InferenceError as error:
            raise InferenceError(f"the chain in {self.path} can't go on: {error}") from error
        counts: dict[str, Any] = state["counts"]
        return counts

    def save(self, chain: Chain, counts: Mapping[str, Any], names: set[str]) -> None:
        """Write where the chain is."""
        present = TraceBatch.from_traces([chain.trace], chain.model.addresses, keep_observes=False)
        info = {"identity": self._identity, "chain": chain.plain(), "counts": dict(counts), "names": sorted(names)}
        # Under a name of its own: at no moment is there none.
        before = self._states()
        path = self.path / f"{_STATE}-{counts['steps']:012d}"
        if path not in before:
            Posterior(present, np.zeros(1), info=info).save(path)
        for old in before:
            if old != path:
                shutil.rmtree(old)

    def _states(self) -> list[Path]:
        return sorted(self.path.glob(f"{_STATE}-*"))

    def write(self, number: int, traces: TraceBatch, rows: NDArray[np.int64]) -> None:
        """Write a block of kept states."""
        Posterior(traces, np.zeros(len(rows)), rows).save(self.path / f"block-{number:06d}")

    def read(self, number: int) -> Posterior:
        """A block of kept states."""
        return Posterior.load(self.path / f"block-{number:06d}")


class FileRecorder:
    """Collects kept states like :class:`.chain.Recorder`, in a folder, and saves the chain now and then.

    Args:
        chain: whose states.
        folder: where to.
        keep_observes: hold the likelihoods' parameters too.
    """

    def __init__(self, chain: Chain, folder: ChainFolder, keep_observes: bool) -> None:
        self._chain = chain
        self._folder = folder
        self._keep_observes = keep_observes
        self._saved = time.monotonic()
        self._held: list[Any] = []
        self._rows: list[int] = []
        self._last: Any = None
        self.blocks = 0
        self.kept = 0

    def begin(self) -> int | None:
        """Take up the chain where it was saved; returns the steps that it has done, None where it has yet to start."""
        counts = self._folder.load(self._chain, self._chain.names)
        if counts is None:
            return None
        self.blocks, self.kept = counts["blocks"], counts["kept"]
        return int(counts["steps"])

    def keep(self) -> None:
        """Keep the present state."""
        trace = self._chain.trace
        if trace is not self._last:
            self._last = trace
            self._held.append(trace)
        self._rows.append(len(self._held) - 1)
        self.kept += 1

    def save(self, steps: int, force: bool = False) -> None:
        """Write what was kept, and the chain, if it is time; asked after every step, however long one takes."""
        if not force and len(self._held) < _BLOCK and time.monotonic() - self._saved < _SECONDS:
            return
        if self._rows:
            traces = TraceBatch.from_traces(self._held, self._chain.model.addresses, self._keep_observes)
            self._folder.write(self.blocks, traces, np.array(self._rows, dtype=np.int64))
            self.blocks += 1
            self._held, self._rows, self._last = [], [], None
        # The block first: one without a state that counts it is written again.
        self._folder.save(self._chain, {"steps": steps, "blocks": self.blocks, "kept": self.kept}, self._chain.names)
        self._saved = time.monotonic()

    def finish(self, count: int) -> tuple[TraceBatch, NDArray[np.int64]]:
        """The distinct traces, and the row of each of the first ``count`` kept states among them."""
        blocks = [self._folder.read(number) for number in range(self.blocks)]
        starts = np.cumsum([0, *(len(block.traces) for block in blocks)])
        rows = np.concatenate([block.rows + start for block, start in zip(blocks, starts, strict=False)])[:count]
        traces = join(self._chain.model, [block.traces for block in blocks])
        return traces.select(np.arange(rows[-1] + 1)), rows


def identity(
    settings: Mapping[str, Any], network: Path | None, model: Simulator, observe: Observations, seed: int, number: int
) -> dict[str, Any]:
    """What makes a chain the one it is: settings but those that only say how much, network, model, data and seed.

    Of a simulator this is the name; :meth:`.chain.Chain.restore` sees whether it does what it did, as far as the
    present state of the chain shows.
    """
    digest = hashlib.sha256()
    for name in sorted(observe.values):
        for value in observe.arrays(name):
            digest.update(f"{name}{value.shape}".encode() + value.tobytes())
    return {
        "settings": {k: v for k, v in settings.items() if k not in ("workers", "folder", "chains")},
        "network": network and hashlib.sha256(network.read_bytes()).hexdigest(),
        "model": model.name,
        "observations": digest.hexdigest(),
        "seed": seed,
        "chain": number,
    }
