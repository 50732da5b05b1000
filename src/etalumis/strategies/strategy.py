"""Synchronous training on many ranks: each has the whole network, other traces, and the same gradient.

Section 4.4.4 of the SC'19 paper. Lightning's own strategies see gradients in ``.grad`` of parameters, one by one, and
wait for every parameter in every step; those of bank rows stand in no ``.grad``, and a step has few of them.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.strategies import ParallelStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed import ReduceOp
from torch.optim import Optimizer

from etalumis.networks import InferenceNetwork
from etalumis.optim import RowOptimizer
from etalumis.strategies.collective import Collective, CollectiveError, Op
from etalumis.strategies.exchange import Exchanged, RowExchange
from etalumis.strategies.union import Compression

_REDUCTIONS: dict[str, Op | Literal["mean"]] = {"avg": "mean", "mean": "mean", "sum": "sum", "max": "max", "min": "min"}


class RowStrategy(ParallelStrategy):
    """Lightning's part of training on the ranks that a launcher started.

    After the backward pass of an iteration's last minibatch, and before clipping, the ranks' gradients become that of
    the mean over all their traces. The module says how many of these are its own, by which factor its gradient becomes
    the mean over them, and the sum of their losses, by ``pending_gradients()``.

    Args:
        collective: the ranks.
        compression: of gradients on their way; see :class:`.RowExchange`.
        overlap: exchange all other gradients while the backward pass completes those of the observation embedding,
            which reads images, and come last.

    Attributes:
        exchanged: what the last exchange was; None before the first.
    """

    is_distributed = True  # Lightning asks strategies that it doesn't know

    def __init__(self, collective: Collective, compression: Compression = "none", overlap: bool = False) -> None:
        super().__init__(cluster_environment=JobEnvironment(collective))
        rank_zero_only.rank = collective.rank  # type: ignore[attr-defined]  # loggers ask before there is a trainer
        self.collective = collective
        self.exchanged: Exchanged | None = None
        self._compression: Compression = compression
        self._overlap = overlap
        self._exchange: RowExchange | None = None

    @property
    def root_device(self) -> torch.device:
        """This rank's: its own graphics card of the node's, or the CPU."""
        (device, *_) = self.parallel_devices or [torch.device("cpu")]
        if device.type != "cuda":
            return device
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    # --- training -----------------------------------------------------------------------------------------------

    def model_to_device(self) -> None:
        assert self.model is not None
        self.model.to(self.root_device)

    def setup(self, trainer: Trainer) -> None:
        super().setup(trainer)
        if trainer.state.fn != TrainerFn.FITTING:
            return
        # Lightning asks for SIGTERM before each minibatch, where there is a process group of torch's, by waiting that
        # hears neither signals nor our timeout; see callbacks.last for what is done instead.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
        (optimizer,) = self.optimizers
        assert isinstance(optimizer, RowOptimizer)
        assert self.lightning_module is not None
        check_networks(self.collective, self.lightning_module)
        share_parameters(self.collective, self.lightning_module)
        if self._overlap and self.root_device.type != "cpu":
            raise CollectiveError("strategy.overlap=true is for training on CPUs; leave it false on graphics cards")
        last = InferenceNetwork.LAST_GRADIENTS if self._overlap else ""
        self._exchange = RowExchange(self.collective, optimizer.parts, self._compression, last)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """One step of all ranks: called for the last minibatch of an iteration only."""

        module: Any = self.lightning_module
        exchange = self._exchange
        assert exchange is not None

        def joined() -> Any:
            if self._overlap:
                module.network.before_last_gradients = lambda: exchange.begin(*module.pending_gradients())
            try:
                result = closure()
            finally:
                module.network.before_last_gradients = None
            self.exchanged = exchange(*module.pending_gradients())
            return result

        return super().optimizer_step(optimizer, joined, model, **kwargs)

    def teardown(self) -> None:
        self._exchange = None
        super().teardown()

    # --- what ranks agree on ------------------------------------------------------------------------------------

    def reduce(self, tensor: Any, group: Any = None, reduce_op: ReduceOp | str | None = "mean") -> Any:
        """A tensor summed, averaged, or the largest or smallest over the ranks; anything else as it is."""
        if not isinstance(tensor, Tensor):
            return tensor
        reduction = _reduction(reduce_op)
        result = tensor.detach().clone(memory_format=torch.contiguous_format)
        if result.dtype not in (torch.float32, torch.float64, torch.int64):
            result = result.to(torch.float32 if result.is_floating_point() else torch.int64)
        if reduction == "mean":
            result = result if result.is_floating_point() else result.to(torch.float32)
            return self.collective.all_reduce(result, "sum").div_(self.world_size)
        return self.collective.all_reduce(result, reduction)

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """(world_size, \\*shape), without gradients."""
        return self.collective.all_gather(tensor.detach().contiguous())

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Plain values, as JSON knows them, of one rank on all of them."""
        return json.loads(self.collective.broadcast_bytes(json.dumps(obj).encode(), src))

    def barrier(self, name: str | None = None) -> None:
        self.collective.barrier()


class JobEnvironment(ClusterEnvironment):
    """Ranks as the collective tells them, so that Lightning guesses nothing from the environment."""

    def __init__(self, collective: Collective) -> None:
        super().__init__()
        hosts = [host.decode() for host in collective.all_gather_bytes(socket.gethostname().encode())]
        self._rank, self._world_size = collective.rank, collective.world_size
        self._local_rank = hosts[: collective.rank].count(hosts[collective.rank])
        self._nodes = list(dict.fromkeys(hosts))
        self._node = self._nodes.index(hosts[collective.rank])

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._nodes[0]

    @property
    def main_port(self) -> int:
        return 0  # nobody listens: the collective is made already

    @staticmethod
    def detect() -> bool:
        """Never by itself: it is made of a collective."""
        return False

    def world_size(self) -> int:
        return self._world_size

    def set_world_size(self, size: int) -> None:
        """The launcher has decided."""

    def global_rank(self) -> int:
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        """The launcher has decided."""

    def local_rank(self) -> int:
        return self._local_rank

    def node_rank(self) -> int:
        return self._node


def check_networks(collective: Collective, module: LightningModule) -> None:
    """See that the ranks are about to train one network: parts of equal shapes, and the same addresses in one order.

    Raises:
        CollectiveError: some ranks have another; they read other data, or other checkpoints.
    """
    states = {n: m.get_extra_state() for n, m in module.named_modules() if _has_extra_state(m)}
    shapes = {name: list(tensor.shape) for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    words = json.dumps([states, shapes], sort_keys=True, default=str).encode()
    digests = collective.all_gather_bytes(hashlib.sha256(words).digest())
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise CollectiveError(
            f"the networks of ranks {others} differ from rank 0's: they have other addresses, or other sizes. Do all "
            "ranks see the same data and the same checkpoint?"
        )


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


@torch.no_grad()
def share_parameters(collective: Collective, module: LightningModule) -> None:
    """Give all ranks the parameters and buffers of rank 0."""
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.copy_(collective.broadcast(tensor.contiguous()))


def _nothing() -> None:
    pass


def _reduction(op: Any) -> Op | Literal["mean"]:
    """Whatever Lightning and torchmetrics call it."""
    name = op if isinstance(op, str) else getattr(getattr(op, "op", op), "name", "mean")
    return _REDUCTIONS[name.lower()]
