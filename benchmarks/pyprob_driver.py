"""Run pyprob 1.5.0 on request: ``python -I pyprob_driver.py FOLDER`` reads and answers JSON lines.

This program alone imports pyprob. Its last release (2022) needs small repairs to run on today's Python and
torch; they are made here, in its own process, and cost it no time.
"""

from __future__ import annotations

import dis
import functools
import importlib.machinery
import json
import os
import sys
import time
import types
from typing import Any

_STORES = ("STORE_FAST", "STORE_NAME", "STORE_GLOBAL")


def load(folder: str) -> types.ModuleType:
    """Import pyprob from its private folder, repaired."""
    sys.path.insert(0, folder)
    # Imported at its top, for plots and a mixture fit that are not used here.
    for package, child in (("matplotlib", "pyplot"), ("sklearn", "mixture")):
        for name in (package, f"{package}.{child}"):
            sys.modules[name] = types.ModuleType(name)
            # torch looks for sklearn by its specification when it makes an optimiser
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
        setattr(sys.modules[package], child, sys.modules[f"{package}.{child}"])
    import torch

    # As in its day: no validation of arguments, checkpoints may hold objects.
    torch.distributions.Distribution.set_default_validate_args(False)
    torch.load = functools.partial(torch.load, weights_only=False)
    torch.set_num_threads(1)
    import pyprob

    pyprob.set_verbosity(0)
    pyprob.state._extract_target_of_assignment = _assigned_here
    return pyprob


def _assigned_here() -> str | None:
    """What pyprob's function of this use returns, on bytecode with inline caches (Python 3.11 and later)."""
    frame = sys._getframe(3)
    return _assigned(frame.f_code, frame.f_lasti)


@functools.cache
def _assigned(code: types.CodeType, offset: int) -> str | None:
    following = next((i for i in dis.get_instructions(code) if i.offset > offset), None)
    if following is None:
        return None
    if following.opname == "RETURN_VALUE":
        return "return"
    return str(following.argval) if following.opname in _STORES else None


def marsaglia(pyprob: types.ModuleType) -> Any:
    """The program of ``benchmarks.tracing.marsaglia``, statement for statement, as a pyprob model."""
    import torch
    from pyprob.distributions import Normal, Uniform

    class Marsaglia(pyprob.Model):
        def forward(self) -> Any:
            s = 1.0
            while float(s) >= 1.0:
                x = pyprob.sample(Uniform(-1.0, 1.0))
                y = pyprob.sample(Uniform(-1.0, 1.0))
                s = x * x + y * y
            mu = 1.0 + 5.0**0.5 * (x * torch.sqrt(-2.0 * torch.log(s) / s))
            likelihood = Normal(mu, 2.0**0.5)
            pyprob.observe(likelihood, 8.0, name="obs0")
            pyprob.observe(likelihood, 9.0, name="obs1")
            return mu

    return Marsaglia("Marsaglia")


def kinds(pyprob: types.ModuleType, draws: int, size: int) -> Any:
    """The program of ``benchmarks.workload``: its attribute ``kind`` decides the addresses of the next trace."""
    import torch
    from pyprob.distributions import Normal, Uniform

    class Kinds(pyprob.Model):
        kind = 0

        def forward(self) -> None:
            x = [pyprob.sample(Uniform(0.0, 1.0), address=f"kind {self.kind} draw {n}") for n in range(draws)]
            pyprob.observe(Normal(torch.stack(x[:size]), torch.full((size,), 0.1)), name="y")

    return Kinds("Kinds")


def images(pyprob: types.ModuleType, path: str) -> Any:
    """Traces with so many draws each as a file says, which observe the image that it gives for them, with noise."""
    import numpy as np
    import torch
    from pyprob.distributions import Normal, Uniform

    with np.load(path) as file:
        lengths, means = file["lengths"].tolist(), torch.from_numpy(file["images"])

    class Images(pyprob.Model):
        number = -1

        def forward(self) -> None:
            self.number = (self.number + 1) % len(lengths)
            for draw in range(lengths[self.number]):
                pyprob.sample(Uniform(0.0, 1.0), address=f"draw {draw}")
            pyprob.observe(Normal(means[self.number], 0.2), name="detector")

    return Images("Images")


class Jobs:
    """What may be asked, by name; each answers a dictionary."""

    def __init__(self, pyprob: types.ModuleType) -> None:
        self._pyprob = pyprob
        self._marsaglia = marsaglia(pyprob)
        self._network: Any = None
        self._minibatches: dict[str, Any] = {}

    def hello(self) -> dict[str, Any]:
        return {"pyprob": self._pyprob.__version__}

    def prior(self, num_traces: int) -> dict[str, Any]:
        """Prior traces of the Marsaglia model, kept in memory."""
        self._pyprob.seed(1)
        start = time.perf_counter()
        traces = self._marsaglia.prior(num_traces=num_traces)
        return self._answer(num_traces, time.perf_counter() - start, traces)

    def rmh(self, num_traces: int) -> dict[str, Any]:
        """Steps of its random-walk Metropolis-Hastings on the Marsaglia model; every trace is kept."""
        self._pyprob.seed(1)
        engine = self._pyprob.InferenceEngine.RANDOM_WALK_METROPOLIS_HASTINGS
        start = time.perf_counter()
        traces = self._marsaglia.posterior(num_traces=num_traces, inference_engine=engine)
        return self._answer(num_traces, time.perf_counter() - start, traces)

    def train_marsaglia(self, num_traces: int, lstm_dim: int) -> dict[str, Any]:
        """An LSTM network for the Marsaglia model, trained little: its speed is what counts."""
        self._pyprob.seed(1)
        self._marsaglia.learn_inference_network(
            num_traces=num_traces,
            inference_network=self._pyprob.InferenceNetwork.LSTM,
            observe_embeddings={"obs0": {}, "obs1": {}},
            lstm_dim=lstm_dim,
        )
        return {"addresses": len(self._marsaglia._inference_network._layers_proposal)}

    def inference_compilation(self, num_traces: int) -> dict[str, Any]:
        """Importance sampling with that network; every trace is kept."""
        self._pyprob.seed(1)
        engine = self._pyprob.InferenceEngine.IMPORTANCE_SAMPLING_WITH_INFERENCE_NETWORK
        start = time.perf_counter()
        traces = self._marsaglia.posterior(
            num_traces=num_traces, inference_engine=engine, observe={"obs0": 8.0, "obs1": 9.0}
        )
        return self._answer(num_traces, time.perf_counter() - start, traces)

    def make_network(self, minibatches: dict[str, list[int]], draws: int, size: int, **sizes: int) -> dict[str, Any]:
        """An LSTM network with layers for named minibatches, each given by the kinds of its traces."""
        from pyprob.nn import Batch, InferenceNetworkLSTM
        from pyprob.util import Optimizer, TraceMode

        self._pyprob.seed(1)
        model = kinds(self._pyprob, draws, size)
        traces = model._trace_generator(trace_mode=TraceMode.PRIOR_FOR_INFERENCE_NETWORK)
        network = self._network = InferenceNetworkLSTM(model=model, observe_embeddings={"y": {}}, **sizes)
        for name, wanted in minibatches.items():
            made = []
            for model.kind in wanted:
                made.append(next(traces))
            self._minibatches[name] = Batch(made)
        network._init_layers_observe_embedding(network._observe_embeddings, example_trace=made[0])
        network._init_layers()
        for minibatch in self._minibatches.values():
            network._polymorph(minibatch)
        network._optimizer_type, network._learning_rate_init, network._weight_decay = Optimizer.ADAM, 1e-4, 0.0
        network._create_optimizer()
        return {"addresses": len(network._layers_proposal)}

    def train(self, minibatch: str, steps: int = 1) -> dict[str, Any]:
        """Steps of its training loop on one of the minibatches: loss, backward pass and Adam."""
        network, batch = self._network, self._minibatches[minibatch]
        start = time.perf_counter()
        for _ in range(steps):
            network._optimizer.zero_grad()
            success, loss = network._loss(batch)
            if not success:
                raise RuntimeError("pyprob cannot compute the loss")
            loss.backward()
            network._optimizer.step()
        return {"rate": steps * len(batch) / (time.perf_counter() - start), "loss": float(loss)}

    def write_dataset(self, folder: str, model: str, num_traces: int, data: str = "") -> dict[str, Any]:
        """A dataset as pyprob stores it, pruned, 128 traces to a file."""
        self._pyprob.seed(1)
        made = images(self._pyprob, data) if model == "images" else self._marsaglia
        start = time.perf_counter()
        made.save_dataset(dataset_dir=folder, num_traces=num_traces, num_traces_per_file=128)
        return {"rate": num_traces / (time.perf_counter() - start)}

    def open_dataset(self, folder: str, minibatch: int) -> dict[str, Any]:
        """Open it and sort it in memory, as its training does; its distributed sampler wants a process group."""
        import torch.distributed
        from pyprob.nn import OfflineDataset
        from pyprob.nn.dataset import DistributedTraceBatchSampler

        if not torch.distributed.is_initialized():
            store = torch.distributed.HashStore()
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        self._dataset = OfflineDataset(folder)
        self._sampler = DistributedTraceBatchSampler(self._dataset, batch_size=minibatch, num_buckets=1)
        return {"traces": len(self._dataset)}

    def read_dataset(self) -> dict[str, Any]:
        """An epoch of minibatches."""
        from pyprob.nn import Batch

        start = time.perf_counter()
        count = 0
        for indices in self._sampler:
            count += len(Batch([self._dataset[i] for i in indices]))
        return {"rate": count / (time.perf_counter() - start)}

    def _answer(self, count: int, seconds: float, traces: Any) -> dict[str, Any]:
        """Speed, and the moments of mu to see that the work was done."""
        mu = traces.map(lambda trace: trace.result)
        return {"rate": count / seconds, "mean": float(mu.mean), "std": float(mu.stddev)}


def main() -> None:
    # pyprob prints on standard output: keep that for the answers and send its words to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    jobs = Jobs(load(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(jobs, request.pop("job"))(**request)
        except Exception as error:  # the asker reports it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
