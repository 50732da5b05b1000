"""``etalumis train cluster=submitit``: a training as a job that submitit submits.

Submitit stores what is to be called as a pickle below the output folder, which its jobs read: the words of the
command line, and the name of the class below.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from etalumis.callbacks.requests import Paused
from etalumis.conf.batch_job import Allocation
from etalumis.conf.build import ConfigError

_QUEUE_AGAIN = signal.SIGUSR2  # asks submitit's jobs to stop, and submitit in them to queue them again
_MOST_JOBS = 1000  # of one training


@dataclass(frozen=True, kw_only=True)
class Submitit(Allocation):
    """A job of submitit's ``executor``."""

    executor: str

    def start(self, config: Mapping[str, Any], words: Sequence[str]) -> str:
        """Submit a training; returns what to say. On this machine it waits for its end.

        Args:
            config: all settings of the training.
            words: of the command line that give them, without those of the cluster.

        Raises:
            ConfigError: submitit is missing, does not know the executor, or does not find SLURM.
            FailedJobError: a job on this machine failed.
        """
        self.check(config)
        try:
            import submitit
        except ImportError:
            raise ConfigError("cluster=submitit needs submitit: pip install 'etalumis[slurm]'") from None
        folder = Path(config["output"]).resolve() / "submitit"
        try:
            executor = submitit.AutoExecutor(folder, cluster=self.executor, slurm_max_num_timeout=_MOST_JOBS)
            executor.update_parameters(**self.parameters(config))
            job = executor.submit(Training(words))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"cluster.executor={self.executor}: {error}") from error
        if self.executor == "slurm":
            return f"job {job.job_id} of {self.nodes} × {self.ranks_per_node} ranks writes {job.paths.stdout}"
        job.results()
        return (job.stdout() or "").strip()

    def parameters(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The allocation in submitit's words."""
        given = {
            "name": f"etalumis-{Path(config['output']).resolve().name}",
            "nodes": self.nodes,
            "tasks_per_node": self.ranks_per_node,
            "cpus_per_task": self.cores_per_rank,
            "gpus_per_node": self.gpus_per_node or None,
            "timeout_min": ceil(self.minutes),
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "slurm_signal_delay_s": self.grace,
            "slurm_setup": list(self.setup) or None,
            "slurm_srun_args": self.srun_options(config),
            "slurm_additional_parameters": dict(self.options) if self.options else None,
        }
        return {name: value for name, value in given.items() if value is not None}


class Training:
    """What each rank of the job calls.

    Args:
        words: of ``etalumis train``.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    def __call__(self) -> None:
        """Train, and have the job queued again where training has been asked to stop.

        Raises:
            RuntimeError: training failed; its output says why.
        """
        import submitit

        from etalumis.cli import main

        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        try:
            code: Any = main(["train", *self.words])  # which hears the signal while it trains
        except SystemExit as left:
            code = left.code
        if code == Paused.exit_code:
            signal.raise_signal(_QUEUE_AGAIN)
        elif code:
            raise RuntimeError(f"etalumis train ended with exit code {code}: see the output")

    def checkpoint(self) -> Any:
        """What submitit calls in the next job."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)
