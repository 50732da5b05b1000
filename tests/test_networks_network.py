"""The inference network: the packed loss against algorithm 1, growing, learning."""

import copy
import math

import numpy as np
import pytest
import torch

import etalumis as et
from etalumis.distributions import Categorical, Normal, Uniform
from etalumis.execution import TraceBatch
from etalumis.networks import InferenceNetwork, NetworkConfigError, ProposalError, banks_of, pack, rows_of
from etalumis.optim import RowAdam
from network_models import SMALL, Algorithm1, every_family, gradients, shake, small, traces


@pytest.fixture(scope="module")
def batch() -> TraceBatch:
    return traces(every_family, 60)


def original_order(packed: object) -> dict[str, torch.Tensor]:
    out = {}
    for name, values in packed.observations.items():  # type: ignore[attr-defined]
        out[name] = torch.empty_like(values)
        out[name][packed.order] = values  # type: ignore[attr-defined]
    return out


def assert_close(found: torch.Tensor, wanted: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"head": {"kind": "shared", "hidden": 8}},
        {"head": {"kind": "film", "hidden": 8}},
        {"core": {"kind": "lstm", "hidden": 7, "layers": 3}},
        {"max_instances": None},
    ],
    ids=["per_address", "shared", "film", "three layers", "exact instances"],
)
def test_packed_loss_is_algorithm_1_in_value_and_gradient(batch: TraceBatch, settings: dict) -> None:
    network = small(batch, **settings)
    packed = pack(batch, network.layout)
    loss, info = network.loss(packed)
    loss.backward()
    found = gradients(network)

    network.zero_grad()
    reference = Algorithm1(network)
    expected = reference.loss(batch, original_order(packed))
    expected.backward()

    assert info["draws"] == packed.num_draws > 400
    assert len(np.unique(batch.trace_types())) > 15
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    wanted = reference.gradients()
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("head", ["per_address", "shared", "film"])
def test_training_is_that_of_algorithm_1_with_separate_modules(batch: TraceBatch, head: str) -> None:
    """Steps of Adam: rows move as parameters of their own, which have no gradient where they are not met."""
    network = small(batch, head={"kind": head, "hidden": 8})
    separate = copy.deepcopy(network)
    reference = Algorithm1(separate)
    reference.banks = {
        name: [row.detach().clone().requires_grad_() for row in rows] for name, rows in reference.banks.items()
    }
    pages = {id(page) for bank in banks_of(separate).values() for page in bank.pages}
    leaves = [p for p in separate.parameters() if id(p) not in pages]
    leaves += [row for rows in reference.banks.values() for row in rows]
    settings = {"lr": 0.02, "eps": 1e-3}  # large: what is zero but for rounding must not be magnified
    ours, theirs = RowAdam(network, **settings), torch.optim.Adam(leaves, **settings)
    for step in range(4):
        part = batch.select(np.arange(7 * step, 7 * step + 7))
        packed = pack(part, network.layout, epoch=step)
        for optimizer in (ours, theirs):
            optimizer.zero_grad()
        loss, expected = network.loss(packed)[0], reference.loss(part, original_order(packed))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        loss.backward()
        expected.backward()
        ours.step()
        theirs.step()
    for name, bank in banks_of(network).items():
        assert_close(bank.rows, torch.stack(reference.banks[name]), name)
    others = dict(separate.named_parameters())
    for name, parameter in network.named_parameters():
        if id(others[name]) not in pages:
            assert_close(parameter, others[name], name)


def test_the_comparison_would_notice_a_lost_predecessor(batch: TraceBatch) -> None:
    """Negative control: the same check fails where the value drawn before is left out."""
    network = small(batch)
    packed = pack(batch, network.layout)
    reference = Algorithm1(network).loss(batch, original_order(packed)).item()
    with torch.no_grad():
        network.projection.value_before.weight.zero_()
        assert network.loss(packed)[0].item() != pytest.approx(reference, rel=1e-6)


def test_loss_does_not_depend_on_the_company(batch: TraceBatch) -> None:
    network = small(batch)
    with torch.no_grad():
        whole = network.loss(pack(batch, network.layout))[0].item()
        parts = [network.loss(pack(batch.select([n]), network.layout))[0].item() for n in range(len(batch))]
    assert whole == pytest.approx(np.mean(parts), rel=1e-12)


def test_accumulated_gradients_are_those_of_the_joined_minibatch(batch: TraceBatch) -> None:
    network = small(batch)
    network.loss(pack(batch, network.layout))[0].backward()
    joined = gradients(network)
    network.zero_grad()
    for part in (batch.select(range(25)), batch.select(range(25, 60))):
        (network.loss(pack(part, network.layout))[0] * (len(part) / len(batch))).backward()
    for name, gradient in gradients(network).items():
        torch.testing.assert_close(
            gradient, joined[name], rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_gradient_reaches_every_used_row_and_no_other(batch: TraceBatch) -> None:
    network = small(batch)
    k = np.array([next(iter(batch.draws("k")[1][batch.draws("k")[0] == n])) for n in range(len(batch))])
    part = batch.select(np.flatnonzero(k == 0))
    network.loss(pack(part, network.layout))[0].backward()
    used = [network.layout.find(*row) for row in rows_of(part)]
    assert 0 < len(used) < len(network.layout)
    for name, bank in banks_of(network).items():
        room, _, head = name.partition(".")
        if name == "addresses.frames":
            wanted = {frame for known in used for frame in known.frames}
        elif name == "addresses.residual":
            wanted = {known.row for known in used}
        else:
            wanted = {known.head_row for known in used if known.head == head.split(".")[0]}
        assert room in ("addresses", "heads", "values")
        assert set(() if bank.gradient is None else bank.gradient.ids.tolist()) == wanted, name
        if bank.gradient is not None and room != "values":  # values of a trace's last draws have no successor
            touched = bank.gradient.rows.flatten(1).abs().sum(1)
            assert (touched > 0).all(), name


@pytest.mark.parametrize("head", ["per_address", "shared", "film"])
@pytest.mark.parametrize("core", ["lstm", "gru", "transformer"])
def test_the_gradients_of_observations_come_last(batch: TraceBatch, core: str, head: str) -> None:
    """When the network says so, all others are complete: ranks may exchange them meanwhile."""
    kind = {"kind": core, "hidden": 8} if core != "transformer" else {"kind": core, "hidden": 8, "heads": 2}
    network = small(batch, core=kind, head={"kind": head, "hidden": 8})
    seen: list[dict[str, torch.Tensor]] = []
    network.before_last_gradients = lambda: seen.append(gradients(network))
    network.loss(pack(batch, network.layout))[0].backward()
    (before,), after = seen, gradients(network)
    last = {name for name in after if name.startswith(network.LAST_GRADIENTS)}
    assert last
    assert all(bool(after[name].any()) and not bool(before[name].any()) for name in last)
    for name in after.keys() - last:
        assert torch.equal(before[name], after[name]), name
    network.freeze(["observations"])
    network.loss(pack(batch, network.layout))[0].backward()
    assert len(seen) == 1, "there are none of them"


def test_a_network_grown_in_steps_equals_one_made_at_once(batch: TraceBatch) -> None:
    rows = rows_of(batch)
    at_once, in_steps = (InferenceNetwork(SMALL, {"y": (), "pair": (2,)}, "test") for _ in range(2))
    assert at_once.grow(rows) == len(at_once.layout) > 10
    for start in range(0, len(rows), 3):
        in_steps.grow(rows[start : start + 3])
    assert in_steps.grow(rows) == 0
    for network in (at_once, in_steps):
        network.standardise(batch)
    assert in_steps.layout.rows == at_once.layout.rows
    packed = pack(batch, at_once.layout)
    assert torch.equal(at_once.loss(packed)[0], in_steps.loss(packed)[0])


def test_growing_changes_nothing_known_and_keeps_graphs_alive(batch: TraceBatch) -> None:
    rows = rows_of(batch)
    network = InferenceNetwork(SMALL, {"y": (), "pair": (2,)}, "test").double()
    network.grow(rows[:6])
    before = {name: (bank.rows, [page.data_ptr() for page in bank.pages]) for name, bank in banks_of(network).items()}
    loss, _ = network.loss(pack(batch, network.layout))
    network.grow(rows[6:])
    loss.backward()  # a graph made before the growth
    for name, (values, pointers) in before.items():
        bank = banks_of(network)[name]
        assert torch.equal(bank.rows[: len(values)], values)
        assert [page.data_ptr() for page in bank.pages][: len(pointers)] == pointers


def test_addresses_without_a_row_count_with_their_prior(batch: TraceBatch) -> None:
    def other() -> None:
        a = et.sample(Normal(0.0, 1.0), name="a", address="here")
        b = et.sample(Uniform(0.0, 2.0), name="b", address="new" if a > 0 else "here")
        et.sample(Categorical([0.5, 0.5]), address="last")
        et.observe(Normal(a + b, 1.0), name="y")

    data = traces(other, 40)
    network = InferenceNetwork(SMALL, {"y": ()}, "other").double()
    known = [row for row in rows_of(data) if row.address.base != "new"]
    network.grow(known)
    shake(network)
    packed = pack(data, network.layout)
    unknown = data.draws("a")[1] > 0
    assert packed.unknown_draws == unknown.sum() > 5
    assert packed.unknown_log_prob == pytest.approx(-math.log(2.0) * unknown.sum())
    loss, info = network.loss(packed)
    assert info["unknown_loss"] == pytest.approx(math.log(2.0) * unknown.mean())
    reference = Algorithm1(network).loss(data, original_order(packed))
    assert loss.item() == pytest.approx(reference.item(), rel=1e-12)


def test_training_learns_a_posterior() -> None:
    def model() -> None:
        mu = et.sample(Normal(1.0, 5**0.5), name="mu")
        et.observe(Normal(mu, 2**0.5), name="y")

    data = traces(model, 4000)
    network = InferenceNetwork.for_batch({**SMALL, "observation_embedding": 16}, data)
    optimizer = RowAdam(network, lr=0.02)
    rng = np.random.default_rng(0)
    held_out = pack(traces(model, 2000, seed=1), network.layout)
    for step in range(200):
        optimizer.zero_grad()
        loss, _ = network.loss(pack(data.select(rng.integers(0, 4000, 200)), network.layout, epoch=step))
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        reached = network.loss(held_out)[0].item()
    best = 0.5 * math.log(2 * math.pi * math.e * (5 * 2 / 7))  # entropy of the exact posterior
    prior = 0.5 * math.log(2 * math.pi * math.e * 5)
    assert best - 0.05 < reached < best + 0.08 < prior - 0.4


def test_a_value_out_of_reach_names_its_address(batch: TraceBatch) -> None:
    network = small(batch)
    value = batch.value.copy()
    draw = batch.offsets[0]
    value[batch.value_offsets[draw]] = 7.0  # k is 0, 1 or 2
    broken = copy.copy(batch)
    object.__setattr__(broken, "value", value)
    with pytest.raises(
        ProposalError, match=r"can't reach the value 7.0 of a Categorical at address .*__Categorical__1"
    ):
        pack(broken, network.layout)


def test_weights_that_are_not_numbers_are_an_error(batch: TraceBatch) -> None:
    network = small(batch)
    with torch.no_grad():
        network.core.recurrent[0].fill_(math.nan)
    with pytest.raises(ProposalError, match="lower the learning rate"):
        network.loss(pack(batch, network.layout))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"hidden": 3}, "unknown network settings"),
        ({"core": {"kind": "abacus"}}, "the cores are"),
        ({"core": {"kind": "lstm", "size": 3}}, "core 'lstm'"),
        ({"head": {"kind": "abacus"}}, "a head has kind"),
        ({"head": {"kind": "shared", "depth": 2}}, "a head has kind"),
        ({"head": "film"}, "head='film' must have a kind"),
        ({"head": {"hidden": 0}}, r"head\.hidden=0 must be a whole number of at least 1, or null"),
        ({"max_instances": 0}, "max_instances=0"),
        ({"max_controlled": -1}, "max_controlled=-1"),
        ({"observation_embedding": -1}, "observation_embedding=-1"),
        ({"address_embedding": 2.5}, r"address_embedding=2\.5"),
        ({"value_embedding": None}, "value_embedding=None"),
        ({"observations": {"z": {"kind": "mlp"}}}, "no observations"),
        ({"observations": {"y": {"kind": "abacus"}}}, "unknown observation embedding"),
        ({"observations": {"y": {"kind": "mlp", "depth": 3}}}, "embedding of observation 'y'"),
        ({"observations": {"y": {"kind": "cnn3d"}}}, "can't read observations of shape"),
    ],
)
def test_wrong_settings_are_named(config: dict, match: str) -> None:
    with pytest.raises(NetworkConfigError, match=match):
        InferenceNetwork(config, {"y": (4,)})


def test_longer_traces_than_max_controlled_leave_their_rest_to_the_prior(batch: TraceBatch) -> None:
    network = small(batch, max_controlled=4)
    packed = pack(batch, network.layout)
    assert len(packed.batch_sizes) == 4
    assert packed.batch_sizes[0] == len(batch)
    assert math.isfinite(network.loss(packed)[0].item())


def test_autocast_keeps_the_loss_and_gives_gradients_in_the_parameters_precision(batch: TraceBatch) -> None:
    network = InferenceNetwork.for_batch(SMALL, batch, "test")
    packed = pack(batch, network.layout)
    loss, _ = network.loss(packed)
    loss.backward()
    exact = gradients(network)
    network.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = network.loss(packed)
    rough.backward()
    assert rough.item() == pytest.approx(loss.item(), rel=0.02)
    for name, gradient in gradients(network).items():
        assert gradient.dtype == torch.float32
        assert (gradient - exact[name]).norm() <= 0.1 * exact[name].norm() + 1e-3, name


def test_a_network_is_made_for_all_batches_together() -> None:
    """A name met a varying number of times, in the first batches not at all: its shape is that of the most."""
    met = {0: 0, 1: 1, 2: 0, 3: 3, 4: 2}

    def repeats(times: int) -> None:
        mu = et.sample(Normal(0.0, 1.0), name="mu")
        et.observe(Normal(mu, 1.0), name="always")
        if times == 2:
            et.sample(Normal(0.0, 1.0), name="late")
        for _ in range(times):
            et.observe(Normal(mu, 1.0), name="varies")

    batches = [traces(lambda times=times: repeats(times), 10) for times in met.values()]
    network = InferenceNetwork.for_batches(SMALL, batches, "test")
    assert network.layout.observations == {"always": (), "varies": (3,)}
    for batch, times in zip(batches, met.values(), strict=True):
        packed = pack(batch, network.layout)
        assert packed.unknown_draws == 0
        assert (~packed.observations["varies"].isnan()).sum(1).tolist() == [times] * 10
        assert math.isfinite(network.loss(packed)[0].item())
    # Inference takes as few as a trace can have, and says why it can't take more.
    network.proposer().begin([0], {"always": 0.0, "varies": np.array(1.0)})
    network.proposer().begin([0], {"always": 0.0, "varies": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"\(4,\).* observe the name 4 times\? No trace .* more than 3"):
        network.proposer().begin([0], {"always": 0.0, "varies": [1.0, 2.0, 3.0, 4.0]})


def test_one_batch_and_its_pieces_make_the_same_network(batch: TraceBatch) -> None:
    pieces = [batch.select(np.arange(start, start + 20)) for start in range(0, len(batch), 20)]
    network = InferenceNetwork.for_batches(SMALL, pieces, "test")
    grown = InferenceNetwork.for_batch(SMALL, pieces[0], "test")
    for piece in pieces[1:]:
        grown.grow(piece)
    assert network.layout.rows == grown.layout.rows
    for name, value in network.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, grown.state_dict()[name]), name
