"""``etalumis train cluster=slurm``: a training as a job of SLURM's, by a script that can be read and changed.

SLURM signals the ranks some minutes before their time is over; they save and leave with exit code 75, and the script
has SLURM queue the job again, which goes on where they stopped.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etalumis.callbacks.requests import Paused
from etalumis.conf.build import ConfigError
from etalumis.storage.manifest import write_atomically

SCRIPT = "job.sh"
_OTHERS_S = 5  # what ranks get to end by themselves after the first has ended
# What sbatch reads: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS.
_TIME = re.compile(r"(?:(?P<days>\d+)-(?P<rest>\d+(?::\d+){0,2})|(?P<time>\d+(?::\d+){0,2}))")


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What a job asks SLURM for; ``conf/cluster`` describes the fields.

    Raises:
        ConfigError: one of them makes no sense.
    """

    nodes: int
    ranks_per_node: int
    cores_per_rank: int | None
    gpus_per_node: int
    time: str | int
    grace: int
    partition: str | None
    account: str | None
    mpi: str
    options: Mapping[str, Any] | None
    setup: Sequence[str]

    def __post_init__(self) -> None:
        for name in ("nodes", "ranks_per_node", "cores_per_rank"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ConfigError(f"cluster.{name}={count} must be at least 1")
        if self.gpus_per_node < 0:
            raise ConfigError(f"cluster.gpus_per_node={self.gpus_per_node} must not be negative")
        if not 0 < self.grace < 60.0 * self.minutes:
            raise ConfigError(f"cluster.grace={self.grace} must be seconds of cluster.time={self.time}")

    @property
    def ranks(self) -> int:
        """Of all nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def minutes(self) -> float:
        """The time of one job.

        Raises:
            ConfigError: sbatch would not take it for one.
        """
        found = _TIME.fullmatch(str(self.time))
        if found is None:
            raise ConfigError(f"cluster.time={self.time} must be minutes, HH:MM:SS or D-HH:MM:SS")
        if found["days"] is not None:
            hours, minutes, seconds = ([float(part) for part in found["rest"].split(":")] + [0.0, 0.0])[:3]
            return 60.0 * (24.0 * int(found["days"]) + hours) + minutes + seconds / 60.0
        parts = [float(part) for part in found["time"].split(":")]
        if len(parts) == 3:
            return 60.0 * parts[0] + parts[1] + parts[2] / 60.0
        return parts[0] + sum(parts[1:]) / 60.0

    def check(self, config: Mapping[str, Any]) -> None:
        """See that a training fits this.

        Raises:
            ConfigError: several ranks that would not know of each other.
        """
        if self.ranks > 1 and not config["strategy"].get("_target_"):
            raise ConfigError(
                f"{self.nodes} nodes of {self.ranks_per_node} ranks: they train together with strategy=mpi or "
                "strategy=ddp_rows"
            )

    def srun_options(self, config: Mapping[str, Any]) -> list[str]:
        """How srun starts the ranks of a training."""
        # Where the first rank that leaves with 75 had the others killed, as some clusters are set up to do, srun would
        # say so in place of 75: its exit code is the highest, and 128 + 9 that of a killed one.
        options = [f"--wait={_OTHERS_S}", "--kill-on-bad-exit=0"]
        if uses_mpi(config):
            options.append(f"--mpi={self.mpi}")
        if self.cores_per_rank is not None:
            options.append(f"--cpus-per-task={self.cores_per_rank}")  # which steps don't take over from their job
        return options


@dataclass(frozen=True, kw_only=True)
class Slurm(Allocation):
    """A batch script, which is submitted if ``submit``."""

    submit: bool

    def start(self, config: Mapping[str, Any], words: Sequence[str]) -> str:
        """Write the script and submit it if asked to; returns what to say.

        Args:
            config: all settings of the training.
            words: of the command line that give them, without those of the cluster.

        Raises:
            ConfigError: settings that don't go together, or SLURM does not take the job.
        """
        self.check(config)
        path = Path(config["output"]).resolve() / SCRIPT
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, self.script(config, words).encode())
        about = f"{path}: {self.nodes} × {self.ranks_per_node} ranks, jobs of {self.time}"
        if not self.submit:
            return f"{about}; submit it by\n  sbatch {shlex.quote(str(path))}"
        try:
            done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise ConfigError(f"there is no sbatch here: on a login node of the cluster, sbatch {path}") from None
        if done.returncode:
            raise ConfigError(f"sbatch does not take {path}: {done.stderr.strip()}")
        number = done.stdout.strip().split(";")[0]
        return f"{about}; job {number} writes {path.parent}/slurm-{number}.out"

    def script(self, config: Mapping[str, Any], words: Sequence[str]) -> str:
        """What sbatch gets."""
        folder = Path(config["output"]).resolve()
        options = {
            "job-name": f"etalumis-{folder.name}",
            "output": folder / "slurm-%j.out",
            "open-mode": "append",
            "nodes": self.nodes,
            "ntasks-per-node": self.ranks_per_node,
            "cpus-per-task": self.cores_per_rank,
            "gpus-per-node": self.gpus_per_node or None,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "signal": f"USR1@{self.grace}",  # to the ranks
            "requeue": True,
            **(self.options or {}),
        }
        given = [option(name, value) for name, value in options.items() if value is not None]
        srun = ["srun", *self.srun_options(config), *command(words)]
        return "\n".join(
            (
                "#!/bin/bash",
                *(f"#SBATCH {words}" for words in given),
                "",
                f"cd {shlex.quote(str(Path.cwd()))} || exit",
                *self.setup,
                shlex.join(srun),
                "code=$?",
                f'if [ "$code" -eq {Paused.exit_code} ]; then  # saved and stopped: the same goes on',
                '    scontrol requeue "$SLURM_JOB_ID"',
                "fi",
                'exit "$code"',
                "",
            )
        )


def option(name: str, value: Any) -> str:
    """One of sbatch's; true is one without a value."""
    return f"--{name}" if value is True else f"--{name}={shlex.quote(str(value))}"


def uses_mpi(config: Mapping[str, Any]) -> bool:
    """Whether the ranks of a training talk by MPI."""
    return str(config["strategy"].get("_target_")).endswith(".mpi")


def command(words: Sequence[str]) -> list[str]:
    """A training with this interpreter, as one starts it on a rank."""
    return [sys.executable, "-m", "etalumis", "train", *words]


def start(config: Mapping[str, Any], overrides: Sequence[str], config_dir: str | None) -> str:
    """Make a job of a training; returns what to say.

    Args:
        config: all settings, with ``cluster``.
        overrides: that give them.
        config_dir: folder with config groups of the user's own.

    Raises:
        ConfigError: see the job's class.
    """
    from etalumis.conf.build import build

    words = [word for word in overrides if re.match(r"[+~]*cluster[.=@]", word) is None]
    if config_dir is not None:
        words += ["--config-dir", str(Path(config_dir).resolve())]
    said: str = build(config["cluster"]).start(config, words)
    return said
