"""The inference network: q(x | y) of every controlled draw, trained on traces from the prior.

The network follows a trace draw by draw. A core reads, at each step, the embedded observation, the value drawn
before and the addresses before and now; a head for the current address turns its output into a proposal
(Le, Baydin and Wood 2017, "Inference compilation and universal probabilistic programming"; sizes as in Baydin et
al. 2019, "Etalumis", section 4.3). The loss is −log q(x | y) summed over the controlled draws, mean over traces.
In training all values are known, so the core runs once over the packed minibatch whatever its mix of trace types,
and every head once over all its draws: the same value and gradient as running the types one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from etalumis.execution import TraceBatch
from etalumis.networks.banks import Bank
from etalumis.networks.cores import core
from etalumis.networks.embeddings import AddressEmbedding, Projection, ValueEmbedding
from etalumis.networks.errors import NetworkConfigError, ProposalError
from etalumis.networks.freezing import freeze
from etalumis.networks.heads import HEADS, Head
from etalumis.networks.layout import Layout, Row, rows_of
from etalumis.networks.noise import realised
from etalumis.networks.observations import ObservationEmbedding
from etalumis.networks.observed import met_observations, observed_values
from etalumis.networks.packing import DrawGroup, TrainingBatch
from etalumis.networks.proposals import Proposal, proposal
from etalumis.networks.settings import merged_config
from etalumis.storage.sites import Seen, join_observed, observed

if TYPE_CHECKING:
    from etalumis.networks.proposer import NetworkProposer


class InferenceNetwork(nn.Module):
    """Proposals for every controlled scalar draw of one simulator.

    Args:
        config: plain values, merged over :data:`etalumis.networks.settings.DEFAULTS`: sizes of the embeddings;
            ``observations``: embedding of each observation by name (see :class:`ObservationEmbedding`); ``core`` and
            ``head``: ``kind`` and arguments; ``proposals``: their kind by family, where it is not the family's own
            (``{"Uniform": "histogram"}``), with the sizes ``components`` of a mixture, ``bins`` of a histogram and
            ``segments`` of a spline; ``max_instances`` of a loop with rows of their own (None: all);
            ``max_controlled`` draws of a trace to propose (None: all); ``seed`` of the first weights.
        observations: shape of each observation it reads, by name.
        simulator: name of the simulator it is for; stored with checkpoints.

    Attributes:
        layout: the address dictionary; :func:`pack` needs it.
        before_last_gradients: called in a backward pass when all gradients are complete but those of the parts whose
            names begin with ``LAST_GRADIENTS``, the observation embedding's: a large part of the work, where it reads
            images. Not called where these are frozen, or there are no draws.
    """

    LAST_GRADIENTS = "observations."
    before_last_gradients: Callable[[], object] | None = None

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        observations: Mapping[str, Sequence[int]] | None = None,
        simulator: str = "",
    ) -> None:
        super().__init__()
        self.config = merged_config(config or {})
        self.simulator = simulator
        c = self.config
        self.layout = Layout(observations or {}, c["max_instances"], c["max_controlled"], c["proposals"])
        seed = int(c["seed"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.observations = ObservationEmbedding(
                self.layout.observations, c["observation_embedding"], c["observations"]
            )
            self.addresses = AddressEmbedding(c["address_embedding"], c["type_embedding"], _seed(seed, "addresses"))
            self.core = core(c["core"])
            self.projection = Projection(
                self.observations.size, self.addresses.size, c["value_embedding"], self.core.width
            )
        self.values = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self._proposals: dict[str, Proposal] = {}
        self._frozen: tuple[str, ...] = ()

    @classmethod
    def for_batch(cls, config: Mapping[str, Any] | None, batch: TraceBatch, simulator: str = "") -> InferenceNetwork:
        """A network for traces like these: it reads every named observation, standardised by their statistics,
        and has rows for their addresses."""
        return cls.for_batches(config, [batch], simulator)

    @classmethod
    def for_batches(
        cls, config: Mapping[str, Any] | None, batches: Iterable[TraceBatch], simulator: str = ""
    ) -> InferenceNetwork:
        """The same for the traces of several batches, the first of which gives the statistics; each is read once."""
        first: TraceBatch | None = None
        seen: Seen = {}
        rows: dict[Row, None] = {}
        for batch in batches:
            first = batch if first is None else first
            seen = join_observed([seen, observed(batch)])
            rows |= dict.fromkeys(rows_of(batch))
        if first is None:
            raise NetworkConfigError("there are no traces to make a network for")
        network = cls(config, {name: met.whole for name, met in met_observations(seen).items()}, simulator)
        network.standardise(first)
        network.grow(rows)
        return network

    def standardise(self, batch: TraceBatch, seed: int = 0) -> None:
        """Take the constants that standardise observations from traces.

        Raises:
            NetworkConfigError: the float32 numbers that the network reads can't hold what varies in an observation.
        """
        order = torch.arange(len(batch)).numpy()
        values = observed_values(batch, self.layout.observations, order, seed, 0, fresh_noise=True, exact=True)
        self.observations.fit(realised(values))

    # --- growing ----------------------------------------------------------------------------------------------

    def grow(self, source: TraceBatch | Iterable[Row]) -> int:
        """Append rows for addresses that are not known yet; nothing known changes.

        Args:
            source: traces, or rows (:func:`etalumis.networks.layout.rows_of`) in the order to append them.

        Returns:
            How many rows are new. Optimisers of :mod:`etalumis.optim` find them by themselves.
        """
        added = self.layout.grow(rows_of(source) if isinstance(source, TraceBatch) else source)
        self.addresses.grow(self.layout)
        for name, rows in self.layout.head_rows.items():
            if name not in self.heads:
                self._add_head(name)
            bank = self._values(name).rows
            missing = rows - len(bank)
            if missing:
                bank.grow(missing)
                self._head(name).grow(missing)
        if added and self._frozen:
            freeze(self, self._frozen)
        return added

    def freeze(self, patterns: Iterable[str]) -> None:
        """Let parts keep their weights, those that come by growing too; see :func:`etalumis.networks.freezing.freeze`.

        Raises:
            NetworkConfigError: a pattern meets nothing.
        """
        self._frozen = tuple(patterns)
        freeze(self, self._frozen)

    def _add_head(self, name: str) -> None:
        c = self.config
        kind, _, categories = name.partition("_")
        count = int(categories or 0)
        answer = self._proposals[name] = proposal(kind, {**c, "categories": count})
        seed = _seed(int(c["seed"]), name)
        like = self.projection.address.weight
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = HEADS[c["head"]["kind"]](
                self.core.size, answer.outputs, self.addresses.size, c["head"]["hidden"], seed
            )
            values = ValueEmbedding(count, c["value_embedding"], seed + 1)
        self.heads[name] = head.to(device=like.device, dtype=like.dtype)
        self.values[name] = values.to(device=like.device, dtype=like.dtype)

    def _head(self, name: str) -> Head:
        return cast("Head", self.heads[name])

    def _values(self, name: str) -> ValueEmbedding:
        return cast("ValueEmbedding", self.values[name])

    # --- training ---------------------------------------------------------------------------------------------

    def loss(self, batch: TrainingBatch) -> tuple[Tensor, dict[str, float]]:
        """Mean over traces of −log q(x | y), weighted where they have weights, and what it is made of.

        Draws of addresses without a row count with their prior density, as inference would draw them.

        Returns:
            the loss, a float64 scalar, and ``traces``, ``draws``, ``unknown_draws`` (addresses without a row) and
            ``unknown_loss`` (their part of the loss) as numbers.

        Raises:
            ProposalError: where a density is zero or not a number, naming the address.
        """
        log_q = plain = self.log_q(batch)
        if batch.weight is not None:
            of_draw = batch.weight[torch.cat([torch.arange(size) for size in batch.batch_sizes] or [torch.arange(0)])]
            log_q = [part * of_draw[group.position] for part, group in zip(plain, batch.groups, strict=True)]
        total = torch.stack([part.sum() for part in log_q]).sum() if log_q else torch.zeros((), dtype=torch.float64)
        if not math.isfinite(total.item()):
            raise self._unreachable(batch, plain)
        traces = max(batch.num_traces, 1)
        info = {
            "traces": float(batch.num_traces),
            "draws": float(batch.num_draws),
            "unknown_draws": float(batch.unknown_draws),
            "unknown_loss": -batch.unknown_log_prob / traces,
        }
        return -(total + batch.unknown_log_prob) / traces, info

    def log_q(self, batch: TrainingBatch) -> list[Tensor]:
        """log q of the draws of each group, float64 (n,), in the order of ``batch.groups``."""
        # Backward passes go through what was computed first last: nothing comes before the observations.
        image = self.observations(realised(batch.observations))
        if self.before_last_gradients is not None and image.requires_grad:
            image.register_hook(partial(_call, self.before_last_gradients))
        static = self.projection.static(image, batch.num_traces)
        embeddings = self.addresses(batch.addresses)
        value_before = self._values_before(batch, embeddings)
        tokens = self.projection.tokens(embeddings, batch.address, batch.previous_address, value_before)
        states = self.core(tokens, static, batch.batch_sizes)
        return [
            self._proposals[group.head].log_q(self.outputs(group, states, embeddings), group.columns)
            for group in batch.groups
        ]

    def outputs(self, group: DrawGroup, states: Tensor, embeddings: Tensor) -> Tensor:
        """The head's numbers for a group's draws, (n, ≥ outputs), from the core's output (D, size)."""
        chosen = states.index_select(0, group.position)
        answer: Tensor = self.heads[group.head](chosen, group, embeddings.index_select(0, group.address))
        return answer

    def _values_before(self, batch: TrainingBatch, like: Tensor) -> Tensor:
        """Embedding of the value drawn before each draw, (D, value_embedding); 0 where there is none."""
        parts = [self.embed_values(group) for group in batch.groups]
        nothing = like.new_zeros((1, self.config["value_embedding"]))
        return torch.cat([*parts, nothing]).index_select(0, batch.previous_draw)

    def embed_values(self, group: DrawGroup) -> Tensor:
        """Embeddings of a group's values, (n, value_embedding)."""
        embedded: Tensor = self.values[group.head](group)
        return embedded

    def proposal(self, head: str) -> Proposal:
        """The proposal that a head parameterises."""
        return self._proposals[head]

    def _unreachable(self, batch: TrainingBatch, log_q: Sequence[Tensor]) -> ProposalError:
        for group, part in zip(batch.groups, (p.detach() for p in log_q), strict=True):
            wrong = torch.nonzero(~part.isfinite())[:, 0]
            if len(wrong):
                draw = int(wrong[0])
                head_row = group.groups.rows[int(group.member[draw])]
                row = [row for row in self.layout.rows if self.layout.head(row) == group.head][head_row]
                density = float(part[draw])
                hint = (
                    "the weights or the observation hold NaN: lower the learning rate, or look at the data"
                    if math.isnan(density)
                    else "the proposal can't reach the value drawn there"
                )
                return ProposalError(f"log q is {density} at address {row.address}: {hint}")
        return ProposalError("the loss is not finite: the prior density of a draw of an unknown address is not")

    # --- inference --------------------------------------------------------------------------------------------

    def proposer(self) -> NetworkProposer:
        """Answers the draws of executions in lock-step."""
        from etalumis.networks.proposer import NetworkProposer

        return NetworkProposer(self)

    # --- state ------------------------------------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear dense gradients and those of the banks."""
        super().zero_grad(set_to_none)
        for module in self.modules():
            if isinstance(module, Bank):
                module.clear_gradient()

    def get_extra_state(self) -> dict[str, Any]:
        """The address dictionary: part of the state dictionary, so that loading makes the rows it needs."""
        return {"simulator": self.simulator, "layout": self.layout.to_json()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Append the rows of a stored dictionary. Runs before the rows themselves are loaded.

        Raises:
            NetworkConfigError: where the network already has other rows.
        """
        rows = Layout.rows_from_json(state["layout"])
        if self.layout.rows != rows[: len(self.layout)]:
            raise NetworkConfigError(
                "the stored network has other addresses, or the same in another order; load it into a new network"
            )
        self.grow(rows)


def _call(call: Callable[[], object], gradient: Tensor) -> None:
    call()


def _seed(seed: int, purpose: str) -> int:
    """A seed of its own for each part of the network, whatever the order in which they come."""
    number = seed
    for byte in purpose.encode():
        number = (number * 1_000_003 + byte) % (1 << 40)
    return number
