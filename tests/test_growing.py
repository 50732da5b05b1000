"""Addresses that come later, networks trained before, parts that keep their weights, addresses without weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import etalumis as et
from etalumis import cli
from etalumis.conf.build import ConfigError, build
from etalumis.conf.compose import compose, plain
from etalumis.distributions import Normal, Uniform
from etalumis.execution import TraceBatch
from etalumis.lit_models.fit import fit
from etalumis.lit_models.inference_network import LitInferenceNetwork
from etalumis.lit_models.start import make_network, start
from etalumis.networks import CheckpointError, InferenceNetwork, NetworkConfigError, banks_of, checkpoint, pack
from etalumis.networks.freezing import PARTS
from etalumis.optim import RowAdam
from etalumis.storage import simulate
from network_models import every_family, small, traces

pytestmark = [
    pytest.mark.timeout(100),
    # Lightning uses what newer packages discourage; nothing we could change.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


class Simulator:
    """Two draws, and where ``rare`` in half of the traces a third one at an address of its own."""

    def __init__(self, rare: bool) -> None:
        self.rare = rare

    def __call__(self) -> float:
        mu = et.sample(Normal(0.0, 1.0), name="mu")
        x = et.sample(Uniform(0.0, 1.0), name="x")
        if self.rare and x > 0.5:
            mu += et.sample(Uniform(-1.0, 1.0), name="late")
        et.observe(Normal(mu, 0.5), name="y")
        return mu


def early() -> et.Model:
    return et.Model(Simulator(False), name="model")


def late() -> et.Model:
    return et.Model(Simulator(True), name="model")


def elsewhere() -> et.Model:
    def other() -> None:
        et.observe(Normal(et.sample(Normal(0.0, 1.0)), 0.5), name="y")

    return et.Model(other, name="model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    for seed, make in enumerate((early, late)):
        simulate(make, path / make.__name__, 300, model="model", seed=seed, workers=0, chunk_size=100)
    return path


WORDS = ["network.observation_embedding=8", "network.core.hidden=8", "network.head.hidden=8", "network.head.kind=film"]
WORDS += ["data.workers=0", "data.batch_size=50", "logger=none", "optimizer.lr=1e-2", "scheduler=constant"]


def settings(train: Path, output: Path, *overrides: str) -> dict[str, Any]:
    words = [f"data.train={train}", f"output={output}", *WORDS, "trainer.max_epochs=1", *overrides]
    config: dict[str, Any] = plain(compose("train", words))
    return config


def tensors(network: InferenceNetwork) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items() if isinstance(value, Tensor)}


# --- freezing -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batch() -> TraceBatch:
    return traces(every_family, 60)


def step(network: InferenceNetwork, optimizer: RowAdam, batch: TraceBatch) -> None:
    optimizer.zero_grad()
    network.loss(pack(batch, network.layout))[0].backward()
    optimizer.step()


@pytest.mark.parametrize("head", ["per_address", "shared", "film"])
@pytest.mark.parametrize("parts", [(part,) for part in PARTS] + [("addresses", "observations", "core", "values")])
def test_frozen_parts_keep_their_weights_and_cost_no_state(
    batch: TraceBatch, parts: tuple[str, ...], head: str
) -> None:
    network = small(batch, head={"kind": head, "hidden": 8})
    network.freeze(parts)
    before = tensors(network)
    optimizer = RowAdam(network, lr=0.01, weight_decay=0.1)
    for _ in range(3):
        step(network, optimizer, batch)
    after, state = tensors(network), optimizer.state_dict()["state"]
    still = {name for name in after if torch.equal(after[name], before[name])}
    weights = {*dict(network.named_parameters()), *(f"{name}.rows" for name in banks_of(network))}
    held = tuple(f"{prefix}." for part in parts for prefix in PARTS[part])
    for name in after.keys() & weights:
        assert (name in still) == name.startswith(held), name
    assert state
    assert not [name for name in state if f"{name}.".startswith(held)]


def test_what_grows_into_a_frozen_part_is_frozen(batch: TraceBatch) -> None:
    rows = [*small(batch).layout.rows]
    network = InferenceNetwork({"core": {"hidden": 8}, "head": {"kind": "per_address", "hidden": 8}}, {"y": ()})
    network.grow(rows[:2])
    network.freeze(["heads"])
    network.grow(rows)
    assert len(network.heads) > 2
    assert not any(p.requires_grad for p in network.heads.parameters())
    assert all(p.requires_grad for p in network.core.parameters())


def test_patterns_name_single_modules(batch: TraceBatch) -> None:
    network = small(batch)
    network.freeze(["heads.mixture.weight?", "projection.address"])
    banks = banks_of(network)
    frozen = {name for name, bank in banks.items() if not bank.wants_gradient}
    assert frozen == {"heads.mixture.weight1", "heads.mixture.weight2"}
    assert not network.projection.address.weight.requires_grad
    assert network.projection.address_before.weight.requires_grad
    with pytest.raises(NetworkConfigError, match="there is no 'tail'; give of observations, core, heads"):
        network.freeze(["tail"])


# --- which addresses have weights -----------------------------------------------------------------------------


def test_addresses_met_in_validation_only_are_left_to_the_prior_and_counted(data: Path, tmp_path: Path) -> None:
    config = settings(data / "early", tmp_path, f"data.valid={data / 'late'}")
    module = fit(config)
    assert [row.address.family for row in module.network.layout.rows] == ["Normal", "Uniform"]
    metrics = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    datamodule = build(config["data"])
    datamodule.attach(module.network.layout)
    unknown = sum(batch.unknown_draws for batch in datamodule.val_dataloader())
    assert metrics["unknown_draws"] == unknown > 100
    # each of these draws is uniform on (−1, 1): log 2
    expected = metrics["loss/valid"] - unknown / 300 * 0.6931471805599453
    assert metrics["loss/valid_known"] == pytest.approx(expected, rel=1e-5)


def test_rows_are_made_for_traces_to_train_with_or_for_the_whole_datasets(data: Path, tmp_path: Path) -> None:
    for addresses, count in (("seen", 2), ("all", 3)):
        config = settings(data / "early", tmp_path, f"data.valid={data / 'late'}", f"addresses={addresses}")
        made = start(config, build(config["data"]))
        assert len(made.network.layout) == count
    config = settings(data / "late", tmp_path, "data.limit=1")
    assert len(make_network(config["network"], build(config["data"])).layout) <= 3
    with pytest.raises(ConfigError, match="addresses=few: it is one of seen, all"):
        start(settings(data / "late", tmp_path, "addresses=few"), build(config["data"]))


# --- networks trained before ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    fit(settings(data / "early", output))
    return output


@pytest.mark.parametrize("name", ["network.pt", "checkpoints/last.ckpt"])
def test_a_trained_network_learns_new_addresses(data: Path, trained: Path, tmp_path: Path, name: str) -> None:
    """From the command line: known weights are where they were, new rows beside them, the optimiser begins anew."""
    old, _ = checkpoint.load(trained / name)
    words = [f"data.train={data / 'late'}", f"init={trained / name}", *WORDS, "optimizer.lr=0.0"]
    assert cli.main(["train", *words, "trainer.max_epochs=1", f"output={tmp_path / 'still'}"]) == 0
    new, _ = checkpoint.load(tmp_path / "still" / "network.pt")
    assert new.layout.rows[:2] == old.layout.rows
    assert len(new.layout) == 3
    then, now = tensors(old), tensors(new)
    for key, value in then.items():
        assert torch.equal(now[key][: len(value)] if key.endswith(".rows") else now[key], value), key
    module = fit(settings(data / "late", tmp_path / "moved", f"init={trained / name}"))
    assert float((tensors(module.network)["core.bias"] - then["core.bias"]).abs().max()) > 1e-3
    state = module.trainer.optimizers[0].state_dict()["state"]
    assert int(state["core.bias"]["step"]) == module.trainer.global_step


def test_the_dictionary_can_be_kept(data: Path, trained: Path, tmp_path: Path) -> None:
    words = [f"init={trained / 'network.pt'}", "freeze=[dictionary,observations]"]
    module = fit(settings(data / "late", tmp_path, *words))
    assert len(module.network.layout) == 2
    assert float(module.trainer.callback_metrics["unknown_draws"]) > 0
    old, _ = checkpoint.load(trained / "network.pt")
    then, now = tensors(old), tensors(module.network)
    assert all(torch.equal(now[key], then[key]) for key in then if key.startswith("observations."))
    assert not torch.equal(now["core.bias"], then["core.bias"])


def test_minibatches_without_a_known_address_teach_nothing(data: Path, trained: Path, tmp_path: Path) -> None:
    simulate(elsewhere, tmp_path / "data", 100, model="model", workers=0, chunk_size=100)
    words = [f"init={trained / 'network.pt'}", "freeze=[dictionary]", "optimizer.weight_decay=0.1"]
    module = fit(settings(tmp_path / "data", tmp_path / "out", *words))
    assert module.trainer.global_step == 2
    old, _ = checkpoint.load(trained / "network.pt")
    then, now = tensors(old), tensors(module.network)
    assert all(torch.equal(now[key], then[key]) for key in then)
    assert float(module.trainer.callback_metrics["loss/valid_known"]) == pytest.approx(0.0, abs=1e-9)


def test_going_on_after_fine_tuning_and_with_more_addresses(data: Path, trained: Path, tmp_path: Path) -> None:
    """Rows keep their order, which is not that of the data."""
    words = [f"init={trained / 'network.pt'}"]
    fit(settings(data / "late", tmp_path, *words))
    again = fit(settings(data / "late", tmp_path, *words, "trainer.max_epochs=2"))
    assert again.trainer.global_step == 2 * again.trainer.num_training_batches
    assert len(again.network.layout) == 3
    shutil.copytree(trained, tmp_path / "grown")
    grown = fit(settings(data / "late", tmp_path / "grown", "resume=true", "trainer.max_epochs=2"))
    assert isinstance(grown, LitInferenceNetwork)
    assert len(grown.network.layout) == 3
    state = grown.trainer.optimizers[0].state_dict()["state"]
    steps = state["addresses.residual"]["step"].tolist()
    assert steps[0] > steps[2] > 0, "moments of known rows were taken over, new ones began"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["init={trained}", "network.core.hidden=9"], r"another network: core\.hidden=9 \(there 8\)"),
        (["init={trained}", "network.components=7", "seed=5"], r"another network: components=7 \(there 5\); give"),
        (["freeze=[dictionary]"], "give init=PATH"),
        (["freeze=[tail]"], "there is no 'tail'"),
        (["freeze=[core,observations,addresses,values,heads]"], "leaves nothing to train"),
    ],
)
def test_settings_that_do_not_go_together(
    data: Path, trained: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    given = [word.format(trained=trained / "network.pt") for word in words]
    with pytest.raises(ConfigError, match=said):
        fit(settings(data / "early", tmp_path, *given))


def test_files_that_are_no_networks(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        fit(settings(data / "early", tmp_path, f"init={tmp_path / 'nothing.pt'}"))
