"""The network as a proposer: answers the waiting draws of many executions with one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etalumis.distributions import Distribution
from etalumis.execution import Address, AddressBook, Answer, Request
from etalumis.networks.columns import Frame, UnreachableError, categories, category_columns, log_prior_columns
from etalumis.networks.errors import ProposalError
from etalumis.networks.layout import CATEGORICAL, UNKNOWN, Known
from etalumis.networks.observed import given_values
from etalumis.networks.packing import DrawGroup, address_columns, group_draws

if TYPE_CHECKING:
    from etalumis.networks.network import InferenceNetwork


class NetworkProposer:
    """Proposals of a trained network for executions in lock-step (the ``Proposer`` protocol).

    Each slot has its own recurrent state; a round steps all slots that wait and evaluates the heads grouped by
    address. An address without a row still steps the core, with the embedding that its relatives give it; its
    value comes from the prior. The network must not change while it is used.

    Attributes, which leave out draws whose value was given:
        proposed: draws answered by the network.
        unknown: how often each address without a row was met.
        beyond: draws left to the prior because their trace had ``max_controlled`` before them.
    """

    def __init__(self, network: InferenceNetwork) -> None:
        self.proposed = 0
        self.beyond = 0
        self.unknown: dict[Address, int] = {}
        self._network = network
        self._device = network.projection.address.weight.device
        self._state = network.core.state()
        self._observed: Mapping[str, Any] | None = None
        self._static = torch.empty(0)
        self._book: AddressBook | None = None
        self._entries: dict[tuple[int, int], int] = {}
        # Projections of the addresses met so far; entry 0 stands for none.
        self._known: list[Known | None] = [None]
        self._entry_of: dict[Known, int] = {}
        width = network.core.width
        self._now = self._before = network.projection.address.weight.new_zeros((1, width))
        self._embeddings = self._now.new_zeros((1, network.addresses.size))
        # By slot: the entry of the address before, the embedded value before, and the number of steps.
        self._last = np.zeros(0, dtype=np.int64)
        self._values = self._now.new_zeros((0, network.config["value_embedding"]))
        self._steps = np.zeros(0, dtype=np.int64)

    # --- the protocol -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def begin(self, slots: Sequence[int], observe: Mapping[str, Any]) -> None:
        """New executions start in these slots, conditioned on these observations.

        Raises:
            ValueError: where an observation that the network reads is missing or has another shape.
        """
        if not len(slots):
            return
        if observe is not self._observed:
            self._static = self._embed(observe)
            self._observed = observe
        missing = max(slots) + 1 - len(self._last)
        if missing > 0:
            self._last = np.concatenate([self._last, np.zeros(missing, dtype=np.int64)])
            self._steps = np.concatenate([self._steps, np.zeros(missing, dtype=np.int64)])
            self._values = torch.cat([self._values, self._values.new_zeros((missing, self._values.shape[1]))])
        index = torch.tensor(list(slots), device=self._device)
        self._state.begin(index, self._static)
        self._last[list(slots)] = 0
        self._steps[list(slots)] = 0
        self._values[index] = 0.0

    @torch.no_grad()
    def propose(self, requests: Sequence[Request], addresses: AddressBook) -> list[Answer]:
        """A value and its log q for each request; log q is None where the value came from the prior."""
        answers: list[Answer | None] = [None] * len(requests)
        most = self._network.layout.max_controlled
        kept = [n for n, r in enumerate(requests) if most is None or self._steps[r.slot] < most]
        waiting = [requests[n] for n in kept]
        if waiting:
            entries = self._look_up(waiting, addresses)
            slots = np.array([r.slot for r in waiting])
            states = self._step(slots, entries)
            for head, members in self._by_head(entries).items():
                if head is None:
                    self._count_unknown([waiting[m] for m in members], addresses)
                    continue
                group, values, log_q = self._answer(head, members, waiting, entries, states)
                self._values[torch.from_numpy(slots[members]).to(self._device)] = self._network.embed_values(group)
                for member, value, density in zip(members, values, log_q.tolist(), strict=True):
                    answers[kept[member]] = (value, density)
                self.proposed += sum(waiting[m].value is None for m in members)
        self.beyond += sum(r.value is None for r in requests) - sum(r.value is None for r in waiting)
        return [
            answer if answer is not None else (r.distribution.draw(r.stream) if r.value is None else r.value, None)
            for r, answer in zip(requests, answers, strict=True)
        ]

    # --- steps ------------------------------------------------------------------------------------------------

    def _embed(self, observe: Mapping[str, Any]) -> Tensor:
        """The observation's share of the core's input, (1, width)."""
        network = self._network
        arrays = {name: x.to(self._device) for name, x in given_values(observe, network.layout.observations).items()}
        return network.projection.static(network.observations(arrays), 1)

    def _look_up(self, requests: Sequence[Request], addresses: AddressBook) -> NDArray[np.int64]:
        """The entry of each request's address, new ones embedded."""
        if addresses is not self._book:
            self._book, self._entries = addresses, {}
        entries = []
        fresh: list[Known] = []
        for request in requests:
            count = categories(type(request.distribution), *request.distribution.pack())
            key = (request.address, count)
            entry = self._entries.get(key)
            if entry is None:
                known = self._network.layout.find(addresses[request.address], count)
                entry = self._entry_of.get(known)
                if entry is None:
                    entry = self._entry_of[known] = len(self._known)
                    self._known.append(known)
                    fresh.append(known)
                self._entries[key] = entry
            entries.append(entry)
        if fresh:
            network = self._network
            columns = address_columns(fresh).to(self._device)
            embeddings = network.addresses(columns)
            self._embeddings = torch.cat([self._embeddings, embeddings])
            self._now = torch.cat([self._now, network.projection.address(embeddings)])
            self._before = torch.cat([self._before, network.projection.address_before(embeddings)])
        return np.array(entries)

    def _step(self, slots: NDArray[np.int64], entries: NDArray[np.int64]) -> Tensor:
        index = torch.from_numpy(slots).to(self._device)
        tokens = self._now[torch.from_numpy(entries).to(self._device)]
        tokens = tokens + self._before[torch.from_numpy(self._last[slots]).to(self._device)]
        tokens = tokens + self._network.projection.value_before(self._values[index])
        states = self._state.step(index, tokens)
        self._last[slots] = entries
        self._steps[slots] += 1
        self._values[index] = 0.0
        return states

    def _by_head(self, entries: NDArray[np.int64]) -> dict[str | None, list[int]]:
        """The positions of requests by head, sorted by bank row; None for addresses without a row."""
        heads: dict[str | None, list[tuple[int, int]]] = {}
        for position, entry in enumerate(entries.tolist()):
            known = self._known[entry]
            assert known is not None
            head = None if known.row == UNKNOWN else known.head
            heads.setdefault(head, []).append((known.head_row, position))
        return {head: [position for _, position in sorted(pairs)] for head, pairs in heads.items()}

    def _answer(
        self,
        head: str,
        members: Sequence[int],
        requests: Sequence[Request],
        entries: NDArray[np.int64],
        states: Tensor,
    ) -> tuple[DrawGroup, list[Any], Tensor]:
        """Draws of one head: the group with their columns, the values, and log q.

        Raises:
            ProposalError: where a given value is out of the proposal's reach.
        """
        parts = _by_family([requests[m].distribution for m in members])
        priors = _assemble(len(members), {key: part.prior() for key, part in parts.items()}, parts)
        group = group_draws(head, np.array(members), entries[list(members)], self._known, {}).to(self._device)
        group = replace(group, columns=self._tensors(priors))
        output = self._network.outputs(group, states, self._embeddings)
        numbers = [(requests[m].stream.uniform(), requests[m].stream.uniform()) for m in members]
        uniforms = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        answer = self._network.proposal(head)
        drawn = answer.draw(output, group.columns, uniforms).cpu().numpy()
        values = np.empty(len(members))
        for part in parts.values():
            values[part.places] = part.values(drawn[part.places])
        for place, member in enumerate(members):
            if requests[member].value is not None:
                values[place] = requests[member].value
        columns = {}
        for key, part in parts.items():
            try:
                columns[key] = part.columns(values[part.places])
            except UnreachableError as error:
                known = self._known[int(entries[members[part.places[error.draw]]])]
                assert known is not None
                address = self._network.layout.rows[known.row].address
                raise ProposalError(f"{error} at address {address}") from None
        group = replace(group, columns=self._tensors(_assemble(len(members), columns, parts)))
        log_q = answer.log_q(output, group.columns)
        casts = [requests[m].distribution.cast(v) for m, v in zip(members, values.tolist(), strict=True)]
        return group, casts, log_q

    def _tensors(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(column).to(self._device) for name, column in columns.items()}

    def _count_unknown(self, requests: Sequence[Request], addresses: AddressBook) -> None:
        for request in requests:
            if request.value is not None:
                continue
            address = addresses[request.address]
            self.unknown[address] = self.unknown.get(address, 0) + 1


class _Family:
    """The draws of one family, and of one length of packed parameters, among those of a head."""

    def __init__(self, family: type[Distribution]) -> None:
        self.family = family
        self.places: list[int] = []
        self.packed: list[tuple[float, ...]] = []
        self._frame: Frame | None = None

    def prior(self) -> dict[str, NDArray[Any]]:
        """The columns that a draw needs."""
        if self.family.proposal == CATEGORICAL:
            return {"log_prior": log_prior_columns(self.family, *self._parameters())}
        frame = self._frame = Frame.of(self.family, *self._parameters())
        return {"low": frame.low, "high": frame.high}

    def values(self, drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values from what the proposal drew."""
        return drawn if self._frame is None else self._frame.value(self.family, drawn)

    def columns(self, value: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
        """The columns that the density of values needs."""
        if self._frame is None:
            return category_columns(self.family, *self._parameters(), value)
        return self._frame.columns(self.family, value)

    def _parameters(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        return np.array(self.packed), np.arange(len(self.packed))


def _by_family(distributions: Sequence[Distribution]) -> dict[tuple[int, int], _Family]:
    parts: dict[tuple[int, int], _Family] = {}
    for place, distribution in enumerate(distributions):
        packed = distribution.pack()
        key = (distribution.code, len(packed))
        part = parts.get(key)
        if part is None:
            part = parts[key] = _Family(type(distribution))
        part.places.append(place)
        part.packed.append(packed)
    return parts


def _assemble(
    count: int,
    columns: Mapping[tuple[int, int], Mapping[str, NDArray[Any]]],
    parts: Mapping[tuple[int, int], _Family],
) -> dict[str, NDArray[Any]]:
    """Columns of all draws from those of each family."""
    out: dict[str, NDArray[Any]] = {}
    for key, made in columns.items():
        for name, column in made.items():
            whole = out.setdefault(name, np.empty((count, *column.shape[1:]), dtype=column.dtype))
            whole[parts[key].places] = column
    return out
