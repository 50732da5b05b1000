"""Posteriors on disk: a folder of .npy files and one JSON file, no code and no pickles."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from etalumis.execution import AddressBook, TraceBatch
from etalumis.inference.errors import InferenceError
from etalumis.inference.posterior import Posterior
from etalumis.storage.codec import META, decode_arrays, encode_arrays
from etalumis.storage.errors import DatasetError

FORMAT = "etalumis-posterior"
VERSION = 1


def save(posterior: Posterior, path: Path) -> None:
    """Write a posterior to a folder, which appears complete or not at all; an earlier posterior is replaced.

    Raises:
        TypeError: naming a tag or result that holds objects which can't be saved safely.
        InferenceError: the folder exists and is something else.
    """
    if path.exists() and not _is_posterior(path):
        raise InferenceError(f"{path} exists and holds no posterior; choose another folder")
    arrays, traces = posterior.traces.to_arrays()
    arrays = {f"traces.{name}": array for name, array in arrays.items()}
    arrays |= {"log_weights": posterior.log_weights, "rows": posterior.rows, "chains": posterior.chains}
    meta: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "markov": posterior.markov,
        "num_dropped": posterior.num_dropped,
        "info": posterior.info,
        "addresses": posterior.traces.addresses.to_json(),
        "traces": traces,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        for name, content in encode_arrays(arrays, meta).items():
            (working / name).write_bytes(content)
        working.chmod(0o777 & ~_umask())
        _put(working, path)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def load(path: Path) -> Posterior:
    """Read a posterior that :func:`save` wrote.

    Raises:
        InferenceError: the folder holds none, or it is damaged or of a newer version.
    """
    if not _is_posterior(path):
        raise InferenceError(f"{path} holds no posterior; Posterior.save writes one")
    members = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    try:
        arrays, meta = decode_arrays(members)
        if meta["version"] > VERSION:
            raise InferenceError(
                f"{path} has format version {meta['version']}, this program reads {VERSION}: update it"
            )
        columns = {name.removeprefix("traces."): a for name, a in arrays.items() if name.startswith("traces.")}
        return Posterior(
            TraceBatch.from_arrays(columns, meta["traces"], AddressBook.from_json(meta["addresses"])),
            arrays["log_weights"],
            arrays["rows"].astype(np.int64),
            arrays["chains"].astype(np.int64),
            meta["markov"],
            meta["info"],
            meta["num_dropped"],
        )
    except (DatasetError, ValueError, KeyError, TypeError) as error:
        raise InferenceError(f"the posterior in {path} is damaged: {error}; save it again") from error


def _put(working: Path, path: Path) -> None:
    """Rename a folder; what was at ``path`` steps aside, and comes back where that fails."""
    if not path.exists():
        working.rename(path)
        return
    old = working.with_name(f"{working.name}-replaced")
    path.rename(old)
    try:
        working.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _is_posterior(path: Path) -> bool:
    try:
        document = json.loads((path / META).read_bytes())
        return bool(document["meta"]["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
