"""Checkpoints: whole round trips, safe loading, clear refusals."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from etalumis.execution import TraceBatch
from etalumis.networks import CheckpointError, InferenceNetwork, banks_of, checkpoint, pack, rows_of
from network_models import every_family, small, traces


@pytest.fixture(scope="module")
def batch() -> TraceBatch:
    return traces(every_family, 60)


@pytest.mark.parametrize(
    "settings",
    [
        *({"head": {"kind": head}} for head in ("per_address", "shared", "film")),
        {"core": {"kind": "gru", "hidden": 8, "layers": 2}},
        {"core": {"kind": "transformer", "hidden": 8, "heads": 2}},
        {"proposals": {"Uniform": "histogram", "Beta": "spline"}, "bins": 7},
    ],
    ids=lambda s: "-".join(map(str, next(iter(s.values())).values())),
)
def test_round_trip(batch: TraceBatch, settings: dict[str, Any], tmp_path: Path) -> None:
    network = InferenceNetwork.for_batch({"core": {"hidden": 8}, **settings}, batch, "sim")
    extra = {"epoch": 3, "note": "x", "losses": [1.0, 2.0], "weights": torch.ones(2)}
    checkpoint.save(tmp_path / "deep" / "network.pt", network, extra)
    loaded, found = checkpoint.load(tmp_path / "deep" / "network.pt", simulator="sim")
    assert found.pop("weights").tolist() == extra.pop("weights").tolist()  # type: ignore[attr-defined]
    assert found == extra
    assert loaded.simulator == "sim"
    assert loaded.layout.rows == network.layout.rows
    assert loaded.layout.head_rows == network.layout.head_rows
    assert loaded.layout.observations == {"y": (), "pair": (2,)}
    assert not loaded.training
    packed = pack(batch, loaded.layout)
    with torch.no_grad():
        assert loaded.loss(packed)[0].item() == network.loss(pack(batch, network.layout))[0].item()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["network.pt"]


def test_a_loaded_network_grows_as_the_original(batch: TraceBatch, tmp_path: Path) -> None:
    rows = rows_of(batch)
    network = InferenceNetwork({"core": {"hidden": 8}}, {"y": (), "pair": (2,)}, "sim")
    network.grow(rows[:5])
    checkpoint.save(tmp_path / "network.pt", network)
    loaded, _ = checkpoint.load(tmp_path / "network.pt")
    for one in (network, loaded):
        one.grow(rows)
    packed = pack(batch, network.layout)
    with torch.no_grad():
        assert loaded.loss(packed)[0].item() == network.loss(packed)[0].item()


def test_only_used_rows_are_stored(batch: TraceBatch, tmp_path: Path) -> None:
    network = InferenceNetwork.for_batch({"core": {"hidden": 8}}, batch, "sim")
    checkpoint.save(tmp_path / "network.pt", network)
    content = torch.load(tmp_path / "network.pt", weights_only=True)
    for name, bank in banks_of(network).items():
        assert len(content["state"][f"{name}.rows"]) == len(bank) < bank.capacity
    whole = sum(p.numel() for p in network.parameters())
    stored = sum(value.numel() for value in content["state"].values() if torch.is_tensor(value))
    assert stored < whole / 2


def test_training_checkpoints_load_as_networks(batch: TraceBatch, tmp_path: Path) -> None:
    network = small(batch).float()
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "etalumis": checkpoint.describe(network)}, tmp_path / "last.ckpt")
    loaded, _ = checkpoint.load(tmp_path / "last.ckpt", simulator="test")
    assert loaded.layout.rows == network.layout.rows
    assert torch.equal(loaded.core.recurrent[0], network.core.recurrent[0])


def test_another_simulator_is_refused(batch: TraceBatch, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "network.pt", small(batch))
    with pytest.raises(CheckpointError, match="trained for the simulator 'test', not for 'tau'"):
        checkpoint.load(tmp_path / "network.pt", simulator="tau")


def test_missing_damaged_and_foreign_files_are_refused(batch: TraceBatch, tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        checkpoint.load(path)
    checkpoint.save(path, small(batch))
    whole = path.read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2], whole[:-50]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="holds no etalumis network"):
        checkpoint.load(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        checkpoint.load(path)


def test_incomplete_and_later_networks_are_refused(batch: TraceBatch, tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    checkpoint.save(path, small(batch))
    content = torch.load(path, weights_only=True)
    del content["state"]["core.bias"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"(?s)complete network.*core\.bias"):
        checkpoint.load(path)
    torch.save({**content, "version": 99}, path)
    with pytest.raises(CheckpointError, match="version 99"):
        checkpoint.load(path)


class Harmful:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.path, "harm")


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"format": "etalumis-network", "x": Harmful(tmp_path / "harm")}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Harmful(tmp_path / "harm"), protocol=2))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(CheckpointError):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_a_failed_save_leaves_the_old_file(batch: TraceBatch, tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    network = small(batch)
    checkpoint.save(path, network, {"epoch": 1})
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        checkpoint.save(path, network, {"function": lambda: None})
    assert checkpoint.load(path)[1] == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["network.pt"]


def test_a_flipped_byte_of_the_weights_is_noticed(tmp_path: Path) -> None:
    """torch itself reads over it."""
    path = tmp_path / "weights.ckpt"
    checkpoint.write(path, {"weights": torch.ones(1000)})
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(1000).numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["weights"], torch.ones(1000))
    with pytest.raises(CheckpointError, match=r"weights\.ckpt is no checkpoint, or a damaged one"):
        checkpoint.read(path)
