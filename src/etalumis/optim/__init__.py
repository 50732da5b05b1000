"""Optimisers that know address banks.

optimizer = RowAdam(network, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, larc="none", trust=0.02)
optimizer = RowSGD(network, lr=1e-2, momentum=0.9, weight_decay=0.0, larc="none", trust=0.02)
norm = clip_grad_norm(optimizer, max_norm)       # rows count
scheduler = PolynomialDecay(optimizer, iterations, power=2, end_lr=2e-5)   # step once per iteration
scheduler = MultiStep(optimizer, iterations, milestones=(0.5, 0.75), gamma=0.1)
average = AverageModel(optimizer, decay=0.999)
optimizer.before_update.append(average.update)
lr = scaled_lr(1e-3, "square_root", minibatch=4096, reference=256)
"""

from etalumis.optim.accumulation import Accumulation
from etalumis.optim.adam import RowAdam
from etalumis.optim.averaging import AverageModel
from etalumis.optim.clipping import clip_grad_norm
from etalumis.optim.rows import RowOptimizer
from etalumis.optim.scaling import scaled_lr
from etalumis.optim.schedules import MultiStep, PolynomialDecay, Schedule
from etalumis.optim.sgd import RowSGD

__all__ = [
    "Accumulation",
    "AverageModel",
    "MultiStep",
    "PolynomialDecay",
    "RowAdam",
    "RowOptimizer",
    "RowSGD",
    "Schedule",
    "clip_grad_norm",
    "scaled_lr",
]
