"""The reference system, pyprob 1.5.0, as a process that answers JSON lines.

It lives in a private folder (``.bench/``, 2 MB, made on first use) and borrows torch and NumPy from this
environment; it never enters the measuring process. ``pyprob_driver.py`` is the other end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

CACHE = Path(__file__).resolve().parent.parent / ".bench"
# Without dependencies: torch and NumPy are here already, and the rest of its list is not needed to run.
HELPERS = ("flatbuffers==2.0", "pydotplus==2.0.2", "sqlitedict==2.1.0", "termcolor==3.3.0")
INSTALL_TIMEOUT_S = 300


class PeerUnavailableError(RuntimeError):
    """pyprob cannot be installed or started here; the message says why."""


class PyprobPeer:
    """A running pyprob process; a context manager.

    Raises:
        PeerUnavailableError: it cannot be installed (no network, no package index) or does not start.
    """

    def __init__(self) -> None:
        folder = install()
        self._log = tempfile.TemporaryFile(mode="w+", encoding="utf-8")  # noqa: SIM115 (lives as long as the peer)
        driver = Path(__file__).with_name("pyprob_driver.py")
        # -I: isolated, so that nothing but the private folder is added to this environment.
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(driver), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )
        try:
            self.ask("hello")
        except RuntimeError as error:
            self.close()
            raise PeerUnavailableError(f"pyprob does not start: {error}") from error

    def ask(self, job: str, **arguments: Any) -> dict[str, Any]:
        """Have one job done and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"job": job, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died: reading says so below
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"pyprob failed in job {job!r}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._process.wait(timeout=30)
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1] if lines else f"exit status {self._process.returncode}"

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> PyprobPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def install(cache: Path = CACHE) -> Path:
    """The folder that holds pyprob."""
    return installed("pyprob-1.5.0", ("pyprob==1.5.0", *HELPERS), cache)


def installed(name: str, packages: Sequence[str], cache: Path = CACHE) -> Path:
    """A private folder with these packages, without their dependencies: made under a temporary name and renamed.

    Raises:
        PeerUnavailableError: pip cannot install them (no network, no package index).
    """
    folder = cache / name
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n", encoding="utf-8")
    print("installing", packages[0], "into", folder, file=sys.stderr, flush=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=cache))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps"]
    try:
        done = subprocess.run(
            [*command, "--target", str(partial), *packages],
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = errors[-1] if errors else f"exit status {done.returncode}"
            raise PeerUnavailableError(f"pip install {packages[0]} failed: {reason}")
        partial.rename(folder)
    except subprocess.TimeoutExpired as error:
        raise PeerUnavailableError(f"pip install {packages[0]} took over {INSTALL_TIMEOUT_S} s") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
