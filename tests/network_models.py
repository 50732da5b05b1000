"""Models, small networks and a plain reference for the tests of the networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import etalumis as et
from etalumis.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Exponential,
    Gamma,
    LogNormal,
    Mixture,
    Normal,
    Poisson,
    TruncatedNormal,
    Uniform,
    Weibull,
)
from etalumis.execution import TraceBatch, run
from etalumis.networks import InferenceNetwork, banks_of
from etalumis.networks.columns import Frame, category_columns
from etalumis.networks.layout import Known

SMALL: dict[str, Any] = {
    "observation_embedding": 6,
    "address_embedding": 5,
    "type_embedding": 3,
    "value_embedding": 4,
    "core": {"kind": "lstm", "hidden": 7},
    "head": {"kind": "per_address", "hidden": 8},
    "components": 3,
    "max_instances": 2,
}


def every_family() -> float:
    """All families, branches, a loop longer than the cap, an array and an uncontrolled draw."""
    k = et.sample(Categorical([0.2, 0.3, 0.5]), name="k")
    mu = et.sample(Normal(1.0, 2.0), name="mu")
    et.sample(Normal(np.zeros(3), 1.0))
    if k == 0:
        et.sample(Beta(2.0, 3.0))
        et.sample(Gamma(2.0, 1.5))
        et.sample(Bernoulli(0.3))
    elif k == 1:
        et.sample(Weibull(1.0, 1.5))
        et.sample(LogNormal(0.0, 0.5), control=False)
        et.sample(LogNormal(0.1, 0.5))
        et.sample(Binomial(7, 0.4))
        et.sample(Categorical([0.1] * (2 + int(mu > 1.0))))
    else:
        et.sample(TruncatedNormal(mu, 1.0, 0.0, 3.0))
        et.sample(Mixture([0.4, 0.6], [Normal(-1.0, 0.5), Uniform(0.0, 1.0)]))
    for _ in range(et.sample(Poisson(2.0), name="n")):
        mu += et.sample(Exponential(1.0 + k)) + et.sample(Uniform(-0.5, 0.5))
    et.observe(Normal(mu, 0.5), name="y")
    et.observe(Normal(np.array([mu, -mu]), 0.1), name="pair")
    return mu


def traces(function: Callable[[], Any], count: int, seed: int = 0, first: int = 0) -> TraceBatch:
    """Prior traces of a model in columns."""
    model = et.Model(function)
    return TraceBatch.from_traces(list(run(model, indices=range(first, first + count), seed=seed)), model.addresses)


def small(batch: TraceBatch, **settings: Any) -> InferenceNetwork:
    """A small network in double precision, with weights large enough that every gradient counts."""
    network = InferenceNetwork.for_batch({**SMALL, **settings}, batch, "test").double()
    shake(network)
    return network


def shake(network: InferenceNetwork, scale: float = 0.3, seed: int = 5) -> None:
    """Random weights instead of the quiet first ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def gradients(network: InferenceNetwork) -> dict[str, Tensor]:
    """All gradients by name; of banks, as large as their used rows."""
    banks = banks_of(network)
    pages = {id(page) for bank in banks.values() for page in bank.pages}
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in network.named_parameters()
        if id(p) not in pages
    }
    for name, bank in banks.items():
        assert all(page.grad is None for page in bank.pages)
        whole = torch.zeros_like(bank.rows)
        if bank.gradient is not None:
            whole[bank.gradient.ids] = bank.gradient.rows
        found[name] = whole
    return found


class Algorithm1:
    """The loss as the paper's algorithm 1 writes it: one sub-minibatch per trace type, step by step, with plain
    operations and automatic differentiation; shares no code with the packed loss but for coordinates."""

    def __init__(self, network: InferenceNetwork) -> None:
        self.network = network
        self.banks: dict[str, Any] = {name: bank.rows.requires_grad_() for name, bank in banks_of(network).items()}
        self.dense = dict(network.named_parameters())

    def gradients(self) -> dict[str, Tensor]:
        pages = {id(page) for bank in banks_of(self.network).values() for page in bank.pages}
        leaves = {name: p for name, p in self.dense.items() if id(p) not in pages} | self.banks
        return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in leaves.items()}

    def loss(self, batch: TraceBatch, observations: dict[str, Tensor]) -> Tensor:
        types = batch.trace_types()
        total = torch.zeros((), dtype=torch.float64)
        for kind in np.unique(types):
            rows = np.flatnonzero(types == kind)
            part = {name: x[torch.from_numpy(rows)] for name, x in observations.items()}
            for group in _same_distributions(batch, rows):
                chosen = {name: x[torch.tensor([list(rows).index(g) for g in group])] for name, x in part.items()}
                total = total + self.sub_minibatch(batch, group, chosen)
        return -total / len(batch)

    def sub_minibatch(self, batch: TraceBatch, rows: list[int], observations: dict[str, Tensor]) -> Tensor:
        """Sum of log q over traces with the same addresses (and numbers of categories)."""
        network = self.network
        core, projection = network.core, network.projection
        size = core.size
        embedded = network.observations(observations)
        h = [torch.zeros(len(rows), size, dtype=torch.float64) for _ in core.recurrent]
        c = [torch.zeros_like(x) for x in h]
        before = torch.zeros(network.addresses.size, dtype=torch.float64)
        value = torch.zeros(len(rows), network.config["value_embedding"], dtype=torch.float64)
        total = torch.zeros((), dtype=torch.float64)
        for draws in zip(*(_proposed(batch, row) for row in rows), strict=True):
            table, numbers = batch.distributions, batch.distribution
            distributions = [table.distribution(int(numbers[n])) for n in draws]
            x = [float(batch.value[batch.value_offsets[n]]) for n in draws]
            family = type(distributions[0])
            packed = np.array([one.pack() for one in distributions])
            count = family.categories(*packed[0]) if family.proposal == "categorical" else 0
            address = batch.addresses[int(batch.address[draws[0]])]
            known = network.layout.find(address, count)
            now = self.address(known)
            gates = projection.observation(embedded) + core.bias if embedded is not None else core.bias
            gates = gates + projection.address(now) + projection.address_before(before)
            gates = gates + projection.value_before(value)
            for layer, weight in enumerate(core.recurrent):
                if layer:
                    gates = core.between[layer - 1](h[layer - 1])
                i, f, g, o = (gates + h[layer] @ weight).chunk(4, 1)
                c[layer] = torch.sigmoid(f) * c[layer] + torch.sigmoid(i) * torch.tanh(g)
                h[layer] = torch.sigmoid(o) * torch.tanh(c[layer])
            before = now
            if known.row < 0:
                total = total + sum(one.log_prob(v) for one, v in zip(distributions, x, strict=True))
                value = torch.zeros_like(value)
                continue
            output = self.head(known, h[-1], now)
            place, array = np.arange(len(rows)), np.array(x)
            rows_of_values = self.banks[f"values.{known.head}.rows"][known.head_row]
            if count:
                columns = category_columns(family, packed, place, array)
                category = torch.from_numpy(columns["category"])
                logits = output[:, :count] + torch.from_numpy(columns["log_prior"])
                log_q = torch.log_softmax(logits, 1)[torch.arange(len(x)), category]
                value = rows_of_values[category]
            else:
                frame = Frame.of(family, packed, place)
                columns = {k: torch.from_numpy(v) for k, v in frame.columns(family, array).items()}
                log_q = mixture(output, network.config["components"], columns)
                scale = torch.from_numpy(frame.scale)
                if family.proposal == "mixture":
                    log_q = (
                        log_q
                        - torch.log(scale)
                        - (torch.log(torch.tensor(x, dtype=torch.float64)) if family.log_space else 0)
                    )
                z = torch.asinh(columns["z"])[:, None]
                value = F.silu(z * rows_of_values[0] + rows_of_values[1])
            # The value of a trace's last draw goes nowhere, but its address has been met: a gradient of zero.
            total = total + log_q.sum() + 0.0 * value.sum()
        return total

    def address(self, known: Known) -> Tensor:
        module = self.network.addresses
        k = float(known.instance)
        vector = module.family[known.family] + module.instance(
            torch.tensor([math.log(k), 1.0 / k], dtype=torch.float64)
        )
        for frame in known.frames:
            vector = vector + self.banks["addresses.frames"][frame] / len(known.frames)
        if known.row >= 0:
            vector = vector + self.banks["addresses.residual"][known.row]
        return torch.cat([vector, module.family_type[known.family]])

    def head(self, known: Known, h: Tensor, address: Tensor) -> Tensor:
        def row(name: str) -> Tensor:
            return self.banks[f"heads.{known.head}.{name}"][known.head_row]

        if f"heads.{known.head}.weight1" in self.banks:
            hidden = torch.relu(h @ row("weight1") + row("bias1"))
        elif f"heads.{known.head}.weight2" in self.banks:
            module: Any = self.network.heads[known.head]
            hidden = torch.relu(module.layer(h) + module.condition(address))
        else:
            module = self.network.heads[known.head]
            scale, shift, down, up = row("modulation").split(module.parts)
            hidden = torch.relu(module.layer1(h) * (1.0 + scale) + shift)
            weight = module.layer2.weight.t() + down.view(module.hidden, -1) @ up.view(-1, module.outputs)
            return hidden @ weight + module.layer2.bias
        return hidden @ row("weight2") + row("bias2")


def mixture(output: Tensor, k: int, columns: dict[str, Tensor]) -> Tensor:
    """Log density, or log mass of a cell, of a mixture of truncated normals in z, by the textbook formulas."""
    # Finite bounds far out: infinite ones have no gradient in these formulas.
    low, high = columns["low"][:, None].clamp(min=-1e6), columns["high"][:, None].clamp(max=1e6)
    left, right = low.clamp(min=-2.0), high.clamp(max=2.0)
    half = (right - left) / 2.0
    start = torch.linspace(-1.0 + 1.0 / k, 1.0 - 1.0 / k, k, dtype=torch.float64)
    mean = (left + right) / 2.0 + half * (output[:, k : 2 * k] + start)
    width = half * (F.softplus(output[:, 2 * k : 3 * k] + math.log(math.expm1(0.4))) + 1e-4)
    log_mass = _log_difference((high - mean) / width, (low - mean) / width)
    z = columns["z"][:, None]
    if "half" in columns:
        cell = columns["half"][:, None]
        top, bottom = torch.minimum(z + cell, high), torch.maximum(z - cell, low)
        log_p = _log_difference((top - mean) / width, (bottom - mean) / width)
    else:
        log_p = -0.5 * ((z - mean) / width) ** 2 - torch.log(width) - 0.5 * math.log(2.0 * math.pi)
    return torch.logsumexp(torch.log_softmax(output[:, :k], 1) + log_p - log_mass, 1)


def _log_difference(b: Tensor, a: Tensor) -> Tensor:
    """log(Φ(b) − Φ(a))."""
    flip = a > 0.0
    a, b = torch.where(flip, -b, a), torch.where(flip, -a, b)
    log_b, log_a = torch.special.log_ndtr(b), torch.special.log_ndtr(a)
    return log_b + torch.log(-torch.expm1(log_a - log_b))


def _proposed(batch: TraceBatch, row: int) -> list[int]:
    draws = range(int(batch.offsets[row]), int(batch.offsets[row + 1]))
    return [n for n in draws if batch.controlled[n] and batch.distributions.shapes[int(batch.distribution[n])] == ()]


def _same_distributions(batch: TraceBatch, rows: Iterable[int]) -> list[list[int]]:
    """Rows of one trace type, split where numbers of parameters differ."""
    groups: dict[tuple[int, ...], list[int]] = {}
    lengths = np.diff(batch.distributions.offsets)
    for row in rows:
        key = tuple(int(lengths[batch.distribution[n]]) for n in _proposed(batch, row))
        groups.setdefault(key, []).append(int(row))
    return list(groups.values())
