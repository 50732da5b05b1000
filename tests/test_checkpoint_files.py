"""Checkpoints written while training goes on: what they hold is of the moment they were asked for; errors come out."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from etalumis.lit_models.fit import fit
from etalumis.lit_models.plugins import CheckpointFiles, snapshot
from etalumis.networks import CheckpointError, checkpoint
from etalumis.storage import simulate
from training_runs import gaussian_model, settings

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def held(files: CheckpointFiles) -> threading.Event:
    """The background does nothing until this is set."""
    go = threading.Event()
    assert files._writer is not None
    files._writer.submit(go.wait)
    return go


def test_the_moment_of_asking_counts(tmp_path: Path) -> None:
    files, layer = CheckpointFiles(background=True), nn.Linear(3, 2)
    moments = {"m": torch.ones(4), "steps": [torch.tensor(1), 2]}
    content = {"state_dict": layer.state_dict(), "optimizer": moments}
    before = snapshot(content)
    go = held(files)
    files.save_checkpoint(content, tmp_path / "a.ckpt")
    with torch.no_grad():
        layer.weight.add_(1.0)
        moments["m"].mul_(5.0)
        moments["steps"].append(3)
    assert not (tmp_path / "a.ckpt").exists()
    go.set()
    read = files.load_checkpoint(tmp_path / "a.ckpt")  # waits for it
    torch.testing.assert_close(read, before, rtol=0.0, atol=0.0)
    assert not torch.equal(read["state_dict"]["weight"], layer.weight)


def test_a_third_waits_for_the_first(tmp_path: Path) -> None:
    """No more than two copies of the training are in memory."""
    files = CheckpointFiles(background=True)
    go = held(files)
    for name in "ab":
        files.save_checkpoint({"name": name}, tmp_path / name)
    asked = threading.Thread(target=files.save_checkpoint, args=({"name": "c"}, tmp_path / "c"))
    asked.start()
    asked.join(0.2)
    assert asked.is_alive()
    go.set()
    asked.join()
    files.teardown()
    assert [checkpoint.read(tmp_path / name)["name"] for name in "abc"] == ["a", "b", "c"]


def test_an_error_of_the_background_comes_out(tmp_path: Path) -> None:
    files = CheckpointFiles(background=True)
    (tmp_path / "file").touch()
    files.check()
    files.save_checkpoint({}, tmp_path / "file" / "a.ckpt")
    while not files._writing[0].done():
        time.sleep(0.01)
    with pytest.raises(CheckpointError, match=r"a\.ckpt can't be written: .*If the disk is full"):
        files.check()
    files.wait()  # it is said once


def test_a_snapshot_is_of_the_same_kinds() -> None:
    state = nn.BatchNorm1d(2).state_dict()
    copied = snapshot({"state": state, "list": [1, (state["weight"],)], "none": None})
    assert type(copied["state"]) is type(state)
    assert copied["state"]._metadata == state._metadata
    assert copied["list"][1][0].data_ptr() != state["weight"].data_ptr()
    assert type(copied["list"][1]) is tuple


def test_what_was_begun_by_a_killed_process_is_deleted(tmp_path: Path) -> None:
    simulate(gaussian_model, tmp_path / "data", 200, model="gaussian", workers=0, chunk_size=50)
    begun = tmp_path / "out" / "checkpoints" / ".last.ckpt.1234.tmp"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"half")
    words = ["checkpoint_background=false", "trainer.max_epochs=1"]
    config: dict[str, Any] = settings(tmp_path / "data", tmp_path / "out", *words)
    fit(config)
    assert sorted(path.name for path in begun.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
