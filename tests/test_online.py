"""Training on traces straight from the simulator."""

import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

import etalumis as et
from etalumis.callbacks import Balance, Paused, Position
from etalumis.conf.build import ConfigError
from etalumis.conf.compose import compose, plain
from etalumis.datamodules.online import OnlineDataModule
from etalumis.distributions import Bernoulli, Exponential, Normal, Uniform
from etalumis.lit_models.fit import fit
from etalumis.lit_models.inference_network import LitInferenceNetwork
from etalumis.networks import InferenceNetwork, TrainingBatch, pack
from etalumis.optim import RowAdam
from etalumis.simulators.classics import (
    LIKELIHOOD_STDDEV,
    PRIOR_MEAN,
    PRIOR_STDDEV,
    gaussian,
    gaussian_posterior,
)
from etalumis.storage import Dataset, DatasetError, SimulationError, simulate
from etalumis.storage.failures import FailurePolicy
from etalumis.storage.sort import sort
from etalumis.storage.validate import validate

pytestmark = [
    pytest.mark.timeout(100),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

SIMULATORS = Path(__file__).parent / "ppx_simulators.py"
GAUSSIAN = {"_target_": "etalumis.simulators.classics:gaussian"}
RARE = {"_target_": "test_online:rare"}
NETWORK = {
    "observation_embedding": 8, "address_embedding": 4, "core": {"kind": "lstm", "hidden": 8},
    "head": {"kind": "per_address", "hidden": 8}, "components": 2,
}  # fmt: skip


def gaussian_model() -> et.Model:
    return et.Model(gaussian)


def rare() -> float:
    """One trace in a hundred has an address that the first ones lack."""
    x = float(et.sample(Normal(0.0, 1.0), name="x"))
    if et.sample(Bernoulli(0.01), control=False):
        x += float(et.sample(Uniform(0.0, 1.0), name="more"))
    et.observe(Normal(x, 1.0), name="y")
    return x


EXECUTED = itertools.count(1)


def hanging(sign: str) -> float:
    """Hangs in its 150th execution in a process, once it has told so."""
    x = float(et.sample(Normal(0.0, 1.0), name="x"))
    if next(EXECUTED) == 150:
        Path(sign).touch()
        time.sleep(1000.0)
    et.observe(Normal(x, 1.0), name="y")
    return x


def failing() -> float:
    raise ZeroDivisionError("no such decay")


def online(simulator: dict[str, Any] | None = None, **settings: Any) -> OnlineDataModule:
    small = {"epoch_traces": 96, "batch_size": 16, "chunk_size": 32, "sample_traces": 32, "valid_traces": 40}
    return OnlineDataModule(simulator or GAUSSIAN, **{**small, "workers": 0, "seed": 3, **settings})


class Losses(Callback):
    """Keeps the loss of every training minibatch, and pulls the plug after so many."""

    def __init__(self, pull: int = -1, save: Path | None = None, go_on: bool = False) -> None:
        self._go_on = go_on
        self.train: dict[tuple[int, int], float] = {}
        self._left, self._save = pull, save

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: TrainingBatch, number: int
    ) -> None:
        self.train[trainer.current_epoch, number] = float(outputs["loss"])
        self._left -= 1
        if self._left == 0:
            assert self._save is not None
            trainer.save_checkpoint(self._save)
            if not self._go_on:
                raise KeyError("the plug was pulled")


def train(
    data: OnlineDataModule, *callbacks: Callback, resume: Path | None = None, epochs: int = 2, accumulate: int = 1
) -> InferenceNetwork:
    network = InferenceNetwork.for_batches(NETWORK, data.training_batches(), data.model).double()
    data.attach(network.layout)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[Position(), *callbacks], accumulate_grad_batches=accumulate,
        num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        for message in (".*does not have many workers.*", ".*LeafSpec.*", ".*is smaller than the logging.*"):
            warnings.filterwarnings("ignore", message)
        module = LitInferenceNetwork(network, lambda n: RowAdam(n, lr=1e-2))
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return network


def assert_equal(one: InferenceNetwork, other: InferenceNetwork) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name], name


@pytest.mark.slow
def test_online_training_finds_the_posterior(tmp_path: Path) -> None:
    words = [
        "data=online", "simulator=gaussian", f"output={tmp_path}", "data.workers=1", "data.epoch_traces=8192",
        "data.batch_size=64", "trainer.max_epochs=6", "optimizer.lr=1e-2",
        "network.core.hidden=16", "network.head.hidden=16", "logger=none",
    ]  # fmt: skip
    fit(plain(compose("train", words)))
    observe = {"obs0": 8.0, "obs1": 9.0}
    post = et.posterior(gaussian_model(), observe, et.IC(tmp_path / "network.pt"), num_traces=1000, seed=1)
    assert post.ess > 200, "the prior alone reaches about 30"
    assert abs(post.mean("mu") - 7.25) < 5 * post.mcse("mu")


@pytest.mark.slow
def test_inflation_finds_the_posterior_of_a_rare_event(tmp_path: Path) -> None:
    """Both observations four standard deviations from what the prior expects."""
    words = [
        "data=online", "simulator=gaussian", f"output={tmp_path}", "data.workers=1", "data.epoch_traces=8192",
        "data.batch_size=64", "trainer.max_epochs=4", "optimizer.lr=1e-2", "data.inflation=2.5",
        "network.core.hidden=16", "network.head.hidden=16", "logger=none",
    ]  # fmt: skip
    fit(plain(compose("train", words)))
    value = PRIOR_MEAN + 4.0 * (PRIOR_STDDEV**2 + LIKELIHOOD_STDDEV**2) ** 0.5
    mean, stddev = gaussian_posterior(value, value)
    observe = {"obs0": value, "obs1": value}
    post = et.posterior(gaussian_model(), observe, et.IC(tmp_path / "network.pt"), num_traces=2000, seed=1)
    assert post.ess > 300, "the prior alone has less than one effective trace here"
    assert abs(post.mean("mu") - mean) < 5 * post.mcse("mu")
    assert abs(post.std("mu") - stddev) < 0.2


def two_draws() -> None:
    x = float(et.sample(Normal(0.0, 1.0), name="x"))
    more = float(et.sample(Exponential(1.0), name="more")) if x > 0.5 else 0.0
    et.sample(Normal(0.0, 1.0), control=False)
    et.observe(Normal(x + more, 1.0), name="y")


def test_weights_leave_the_objective_as_it_was() -> None:
    """The loss of one network: from the prior, from the wider prior with weights, and there without."""
    target = {"_target_": "test_online:two_draws"}
    size = 8_000
    sizes = {"sample_traces": 1, "chunk_size": size, "batch_size": size, "valid_traces": 0}
    prior = online(target, **sizes).training_batches()
    wide = online(target, **sizes, inflation=1.3, weighted=True)
    assert wide.valid_order.traces == 0
    (from_prior,), (from_wide,) = list(prior), list(wide.training_batches())
    assert from_wide.draws("x")[1].std() == pytest.approx(1.3, rel=0.02)
    network = InferenceNetwork.for_batch(NETWORK, from_prior.select(range(100))).double()
    few = network.layout
    wide.attach(few)
    packed = wide._prepare(from_wide)
    assert packed.weight is not None
    assert float(packed.weight.mean()) == pytest.approx(1.0)
    expected = np.exp(from_wide.log_prior - from_wide.log_proposal)
    torch.testing.assert_close(packed.weight, torch.from_numpy(expected / expected.mean())[packed.order])
    with torch.no_grad():
        ours = float(network.loss(packed.double())[0])
        plain_loss = float(network.loss(pack(from_wide, few, seed=3).double())[0])
        theirs = float(network.loss(pack(from_prior, few, seed=3).double())[0])
    assert ours == pytest.approx(theirs, abs=0.05)
    assert plain_loss > theirs + 0.15, "what is counted alike is another loss"
    # Draws without a row are weighted as well.
    unknown = InferenceNetwork(NETWORK, {"y": ()}).double()
    prior_loss = float(unknown.loss(pack(from_prior, unknown.layout))[0])
    assert float(unknown.loss(pack(from_wide, unknown.layout, weighted=True))[0]) == pytest.approx(prior_loss, abs=0.05)


def test_a_training_is_the_same_for_any_number_of_processes() -> None:
    here, there = Losses(), Losses()
    assert_equal(train(online(), here), train(online(workers=2), there))
    assert here.train == there.train
    assert len(here.train) == 2 * 6


def test_kept_traces_are_the_dataset_of_simulate(tmp_path: Path) -> None:
    train(online(workers=1, tee=str(tmp_path / "kept")))
    simulate(gaussian_model, tmp_path / "made", 192, model="gaussian", seed=3, workers=0, chunk_size=32)
    kept, made = Dataset(tmp_path / "kept"), Dataset(tmp_path / "made")
    assert (len(kept), kept.name) == (192, "gaussian")
    for one, other in zip(kept.batches(), made.batches(), strict=True):
        np.testing.assert_array_equal(one.index, other.index)
        np.testing.assert_array_equal(one.value, other.value)
        np.testing.assert_array_equal(one.log_likelihood, other.log_likelihood)
        assert [one.addresses[a] for a in one.address[:9]] == [other.addresses[a] for a in other.address[:9]]


def now_and_then() -> float:
    """Fails in one trace of twenty."""
    x = float(et.sample(Uniform(0.0, 1.0), name="x"))
    if x > 0.95:
        raise ZeroDivisionError("no such decay")
    et.observe(Normal(x, 1.0), name="y")
    return x


def test_kept_traces_tell_of_failures(tmp_path: Path) -> None:
    target = {"_target_": "test_online:now_and_then"}
    train(online(target, tee=str(tmp_path / "kept"), failures="skip"))
    made = simulate(
        lambda: et.Model(now_and_then), tmp_path / "made", 192, model="now_and_then", seed=3, workers=0, chunk_size=32,
        failures=FailurePolicy("skip"),
    )  # fmt: skip
    assert made.failures["count"] > 3
    assert Dataset(tmp_path / "kept").manifest.failures == made.failures
    assert list(validate(tmp_path / "kept", workers=0)) == []
    sort([tmp_path / "kept"], tmp_path / "sorted", workers=0)
    assert Dataset(tmp_path / "sorted").manifest.failures == made.failures


def test_a_finished_dataset_is_gone_on_with_by_a_longer_training(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    train(online(RARE, seed=4, tee=str(kept)), Losses(6, tmp_path / "first.ckpt", go_on=True), epochs=1)
    assert len(Dataset(kept)) == 96
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    train(online(RARE, seed=4, tee=str(kept)), resume=tmp_path / "first.ckpt", epochs=1)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    train(online(RARE, seed=4, tee=str(kept)), resume=tmp_path / "first.ckpt", epochs=2)
    train(online(RARE, seed=4, tee=str(tmp_path / "whole")), epochs=2)
    for path in (tmp_path / "whole").iterdir():
        assert (kept / path.name).read_bytes() == path.read_bytes(), path.name
    assert list(validate(kept, workers=0)) == []
    with pytest.raises(DatasetError, match=r"already holds a dataset made with other settings \(seed\)"):
        train(online(RARE, seed=5, tee=str(kept)))


@pytest.mark.parametrize(("after", "accumulate"), [(3, 1), (9, 2), (6, 1)])
def test_interrupted_training_goes_on_and_so_do_the_traces_kept(tmp_path: Path, after: int, accumulate: int) -> None:
    whole, first, second = Losses(), Losses(after, tmp_path / "last.ckpt"), Losses()
    network = train(online(RARE, seed=4), whole, accumulate=accumulate)
    with pytest.raises(KeyError, match="plug"):
        train(online(RARE, seed=4, tee=str(tmp_path / "kept")), first, accumulate=accumulate)
    with pytest.raises(DatasetError, match="unfinished"):
        Dataset(tmp_path / "kept")
    again = online(RARE, seed=4, tee=str(tmp_path / "kept"))
    assert_equal(train(again, second, resume=tmp_path / "last.ckpt", accumulate=accumulate), network)
    lost = after % 6 % accumulate
    assert second.train == {place: loss for place, loss in whole.train.items() if place >= divmod(after - lost, 6)}
    assert len(Dataset(tmp_path / "kept")) == 192


def test_traces_left_out_of_half_an_iteration_are_counted_once(tmp_path: Path) -> None:
    whole = online(RARE, seed=7, unknown="discard")
    train(whole, accumulate=2)
    with pytest.raises(KeyError, match="plug"):
        train(online(RARE, seed=7, unknown="discard"), Losses(11, tmp_path / "last.ckpt"), accumulate=2)
    again = online(RARE, seed=7, unknown="discard")
    train(again, resume=tmp_path / "last.ckpt", accumulate=2)
    assert again.discarded == whole.discarded == 3, "two of them in the 11th minibatch, which is met again"


def test_the_network_grows_where_new_addresses_appear() -> None:
    network = train(online(RARE, seed=4))
    assert len(network.layout) == 2
    data = online(RARE, seed=4, unknown="prior")
    assert len(train(data).layout) == 1
    names = {row.address.family for row in network.layout.rows}
    assert names == {"Normal", "Uniform"}


def test_a_kept_dictionary_does_not_grow(tmp_path: Path) -> None:
    words = [
        "data=online", "simulator=gaussian", "data.workers=0", "logger=none", "trainer.max_epochs=1",
        "data.epoch_traces=192", "data.batch_size=16", "data.chunk_size=32", "data.valid_traces=32",
        "data.sample_traces=32", "data.seed=4", "network.core.hidden=8", "network.head.hidden=8",
        "network.observation_embedding=8",
    ]  # fmt: skip

    def trained(name: str, *overrides: str) -> LitInferenceNetwork:
        config = plain(compose("train", [*words, f"output={tmp_path / name}", *overrides]))
        config["data"]["simulator"] = RARE
        return fit(config)

    init = f"init={tmp_path / 'first' / 'network.pt'}"
    assert len(trained("first", "data.unknown=prior").network.layout) == 1
    assert len(trained("grown", init).network.layout) == 2
    module = trained("kept", init, "freeze=[dictionary]")
    assert len(module.network.layout) == 1
    (balance,) = [c for c in module.trainer.callbacks if isinstance(c, Balance)]  # type: ignore[attr-defined]
    assert balance.waited > 0.0, "traces are simulated in this process"


def test_ranks_have_traces_of_their_own_in_epochs_of_equal_length() -> None:
    seen: list[list[int]] = []
    for rank in range(2):
        data = online(epoch_traces=97)
        data.attach(InferenceNetwork.for_batches(NETWORK, data.training_batches()).layout)
        data.deal_to(rank, 2)
        loader, read = data.train_dataloader(), []
        inner = loader._prepare
        loader._prepare = lambda traces, read=read, inner=inner: (read.extend(traces.index.tolist()), inner(traces))[1]  # type: ignore[misc,method-assign]
        for _ in range(2):
            assert len(list(loader)) == len(loader) == 4
        loader.close()
        seen.append(read)
    assert sorted(seen[0] + seen[1]) == list(range(256))


def test_another_number_of_ranks_goes_on_after_the_chunks_in_work() -> None:
    data = online()
    data.deal_to(0, 2)
    state = {**data.state_dict(), "given": 3, "minibatches": 3, "first_chunk": 10}
    data.deal_to(0, 1)
    data.load_state_dict(state)
    assert data.resumed.minibatches == 6, "all chunks of the epoch were begun"
    assert data.state_dict()["first_chunk"] == 14
    assert data.state_dict()["given"] == 0


def test_a_simulator_in_another_process() -> None:
    remote = {
        "_target_": "etalumis.ppx.remote.RemoteModel",
        "command": [sys.executable, str(SIMULATORS), "branching", "{address}"],
    }
    data = online(remote)
    losses = Losses()
    train(data, losses, epochs=1)
    assert len(losses.train) == 6
    assert all(np.isfinite(list(losses.train.values())))


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGINT, 0)])
def test_a_simulator_that_hangs_does_not_keep_training_from_stopping(
    tmp_path: Path, number: signal.Signals, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_online.EXECUTED", itertools.count(1))
    monkeypatch.setattr("etalumis.datamodules.loader._PATIENCE_S", 0.5 if workers == 0 else 10.0)
    sign = tmp_path / "hangs"
    words = [
        "data=online", "simulator=gaussian", f"data.workers={workers}", "logger=none", f"output={tmp_path / 'run'}",
        "data.batch_size=16", "data.chunk_size=16", "data.valid_traces=0", "data.sample_traces=16",
        "network.core.hidden=8", "network.head.hidden=8", "network.observation_embedding=8",
        "trainer.accumulate_grad_batches=2", f"data.tee={tmp_path / 'kept'}",
    ]  # fmt: skip
    config = plain(compose("train", words))
    config["data"]["simulator"] = {"_target_": "test_online:hanging", "sign": str(sign)}
    asked = []

    def ask() -> None:
        while not sign.exists():
            time.sleep(0.05)
        time.sleep(0.3)  # what came before it is trained with
        asked.append(time.monotonic())
        os.kill(os.getpid(), number)

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises((Paused, KeyboardInterrupt), match=r"after [34] steps, saved in .*: the same command goes on"):
        fit(config)
    assert time.monotonic() - asked[0] < 6.0
    assert not multiprocessing.active_children()
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] in (3, 4)


@pytest.mark.slow
def test_an_execution_that_hangs_is_left_out_after_a_time(tmp_path: Path) -> None:
    data = online(
        {"_target_": "test_online:hanging", "sign": str(tmp_path / "hangs")}, workers=1, failures="skip", timeout=0.5,
        max_failures=0.5, sample_traces=150, valid_traces=0,
    )  # fmt: skip
    assert sum(map(len, data.training_batches())) == 160, "the second time, in a new process, it does not hang"


def test_failures_are_told(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="no such decay"):
        online({"_target_": "test_online:failing"})
    with pytest.raises(ConfigError, match="give one of them"):
        online(inflation=2.0, tee=str(tmp_path / "kept"))
    with pytest.raises(ConfigError, match="simulator=tau"):
        OnlineDataModule(None)
    with pytest.raises(ConfigError, match=r"data\.timeout needs processes"):
        online(timeout=1.0)
    with pytest.raises(ValueError, match="chunk_size must be at least 1; got 0"):
        online(chunk_size=0)
    simulate(gaussian_model, tmp_path, 5, model="gaussian", workers=0)
    with pytest.raises(DatasetError, match=r"holds traces of 'gaussian', the simulator is 'rare'"):
        online(RARE, valid=str(tmp_path))
    simulate(gaussian_model, tmp_path / "ours", 5, model="gaussian", workers=0, seed=3, simulator=GAUSSIAN)
    with pytest.raises(DatasetError, match="hold the same traces: of 'gaussian' with seed 3"):
        online(valid=str(tmp_path / "ours"))


def test_a_dataset_can_not_begin_in_the_middle_of_a_training(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="plug"):
        train(online(), Losses(5, tmp_path / "last.ckpt"))
    with pytest.raises(DatasetError, match=r"holds 0 chunks, training is at the 3th"):
        train(online(tee=str(tmp_path / "kept")), resume=tmp_path / "last.ckpt")
