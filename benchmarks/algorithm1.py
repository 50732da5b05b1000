"""A plain implementation of training, to compare with: the paper's Algorithm 1 as one would write it in PyTorch.

One sub-minibatch per trace type; for every address modules of its own; ``torch.nn.LSTM`` over the sub-minibatch;
densities in tensor operations over a sub-minibatch and all components; automatic differentiation; Adam, which skips
what has no gradient. Sizes are those of the paper. It shares no code with the package but for reading traces.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.workload import COMPONENTS, HIDDEN, LEARNING_RATE, SIZE
from etalumis.execution import TraceBatch

OBSERVATION, ADDRESS, TYPE, VALUE = 256, 64, 8, 4


class Algorithm1(nn.Module):
    """The network for addresses of uniform priors; calling it makes one training step."""

    def __init__(self, batches: list[TraceBatch]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.observation = nn.Sequential(
            nn.Linear(SIZE, OBSERVATION), nn.ReLU(), nn.Linear(OBSERVATION, OBSERVATION), nn.ReLU()
        )
        self.lstm = nn.LSTM(OBSERVATION + VALUE + 2 * (TYPE + ADDRESS), HIDDEN)
        self.family = nn.Parameter(torch.randn(TYPE))
        self.addresses, self.values, self.proposals = nn.ParameterDict(), nn.ModuleDict(), nn.ModuleDict()
        outputs = 3 * COMPONENTS
        middle = (HIDDEN + outputs) // 2
        for name in sorted({str(address) for batch in batches for address in _met(batch)}):
            self.addresses[name] = nn.Parameter(torch.randn(ADDRESS))
            self.values[name] = nn.Linear(1, VALUE)
            self.proposals[name] = nn.Sequential(nn.Linear(HIDDEN, middle), nn.ReLU(), nn.Linear(middle, outputs))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)

    def forward(self, batch: TraceBatch) -> float:
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()

    def loss(self, batch: TraceBatch) -> Tensor:
        types = batch.trace_types()
        y = torch.from_numpy(np.asarray(next(o for o in batch.observes if o.name == "y").values, dtype=np.float32))
        log_q = [self.log_q(batch, rows, y[rows]) for rows in (np.flatnonzero(types == t) for t in np.unique(types))]
        return -torch.stack(log_q).sum() / len(batch)

    def log_q(self, batch: TraceBatch, rows: np.ndarray, y: Tensor) -> Tensor:
        """Sum of log q of the traces of one type."""
        first, last = int(batch.offsets[rows[0]]), int(batch.offsets[rows[0] + 1])
        names = [str(batch.addresses[int(a)]) for a in batch.address[first:last]]
        places = batch.value_offsets[batch.offsets[rows][:, None] + np.arange(len(names))]
        x = torch.from_numpy(batch.value[places].astype(np.float32))
        observed = self.observation(y)
        steps = []
        for step, name in enumerate(names):
            if step:
                value = self.values[names[step - 1]](x[:, step - 1 : step])
                before = torch.cat([self.family, self.addresses[names[step - 1]]])
            else:
                value, before = x.new_zeros((len(x), VALUE)), x.new_zeros(TYPE + ADDRESS)
            address = torch.cat([before, self.family, self.addresses[name]])
            steps.append(torch.cat([observed, value, address.expand(len(x), -1)], 1))
        states, _ = self.lstm(torch.stack(steps))
        return torch.stack(
            [
                log_density(self.proposals[name](state), x[:, n]).sum()
                for n, (name, state) in enumerate(zip(names, states, strict=True))
            ]
        ).sum()


def log_density(output: Tensor, x: Tensor) -> Tensor:
    """Log density of a mixture of normals truncated to (0, 1), (n,), from (n, 3 · components)."""
    logits, mean, width = output.double().chunk(3, 1)
    mean, width = torch.sigmoid(mean), F.softplus(width) + 1e-3
    low, high = -mean / width, (1.0 - mean) / width
    mass = 0.5 * (torch.erf(high * math.sqrt(0.5)) - torch.erf(low * math.sqrt(0.5)))
    z = (x[:, None] - mean) / width
    log_p = -0.5 * z * z - torch.log(width * mass) - 0.5 * math.log(2.0 * math.pi)
    return torch.logsumexp(torch.log_softmax(logits, 1) + log_p, 1)


def _met(batch: TraceBatch) -> list[object]:
    return [batch.addresses[int(a)] for a in np.unique(batch.address)]
