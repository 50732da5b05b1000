"""Trainings as jobs of SLURM's: what is asked for, the scripts line by line, and running them with stand-ins.

Where there is no SLURM, commands of its names start the ranks on this machine and tell them what SLURM's tell theirs.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from etalumis import cli
from etalumis.conf.batch_job import Slurm, command
from etalumis.conf.build import ConfigError, build
from etalumis.conf.compose import compose, plain
from etalumis.conf.help import choices, settings_of, verb_help
from etalumis.storage import simulate
from launching import ENVIRONMENT
from training_runs import SMALL, branching_model

SBATCH = """#!/bin/bash
echo "$@" > "$STATE/sbatch"
[ "$1" = --parsable ] && echo "4242;cluster" || echo "Submitted batch job 4242"
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$STATE/scontrol"
"""
# Two ranks, whatever is asked for; its status is the largest of theirs, as srun's.
SRUN = """#!/bin/bash
echo "$@" > "$STATE/srun"
while [[ "$1" == --* ]]; do shift; done
export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_ID=0 SLURM_STEP_NODELIST=localhost
ranks=()
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
    ranks+=($!)
done
status=0
for rank in "${ranks[@]}"; do
    wait "$rank"; code=$?
    ((code > status)) && status=$code
done
exit $status
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands of SLURM's on the search path; returns the folder in which they note what they were told."""
    programs, state = tmp_path / "bin", tmp_path / "state"
    programs.mkdir()
    state.mkdir()
    for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("srun", SRUN)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("STATE", str(state))
    return state


def settings(*words: str) -> dict[str, Any]:
    return dict(plain(compose("train", ["data.train=data", *words])))


def says(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["train", "data.train=data", *words]) == 1
    return capsys.readouterr().err


# --- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("90", 90), ("90:30", 90.5), ("12:00:00", 720), ("1-12", 2160), ("1-12:30", 2190), ("2-00:00:30", 2880.5)],
)
def test_times_as_sbatch_reads_them(time: str, minutes: float) -> None:
    assert build(settings("cluster=slurm", f"cluster.time={time}")["cluster"]).minutes == minutes


@pytest.mark.parametrize("cluster", choices("cluster"))
def test_help_says_what_each_setting_means(cluster: str) -> None:
    found = settings_of("cluster", cluster)
    assert {"partition", "account", "grace"} < {setting.key for setting in found}
    assert [setting.key for setting in found if not setting.comment] == []
    assert "cluster.partition=null" in verb_help("train", [f"cluster={cluster}"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cluster.time=soon"], "must be minutes, HH:MM:SS"),
        (["cluster.time=5"], r"cluster.grace=300 must be seconds of cluster.time=5"),
        (["cluster.nodes=0"], "cluster.nodes=0 must be at least 1"),
        (["cluster.gpus_per_node=-1"], "must not be negative"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(settings("cluster=slurm", *words)["cluster"])


def test_errors_are_said_before_there_is_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert "strategy=mpi or strategy=ddp_rows" in says(capsys, "cluster=slurm", "cluster.nodes=2")
    assert "cluster.nodes=two must be a whole number" in says(capsys, "cluster=slurm", "cluster.nodes=two")
    assert "no_such" in says(capsys, "cluster=slurm", "trainer.no_such=1")
    assert "leave cluster out" in says(capsys, "cluster=slurm", "search=lstm")
    assert list(tmp_path.iterdir()) == []
    assert "there is no sbatch here" in says(capsys, "cluster=slurm", "cluster.submit=true")


# --- the script -------------------------------------------------------------------------------------------------------


def test_the_script_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["cluster=slurm", "cluster.nodes=16", "cluster.ranks_per_node=4", "cluster.cores_per_rank=8"]
    words += ["cluster.gpus_per_node=4", "cluster.time=1-00:00:00", "cluster.grace=600", "cluster.partition=long"]
    words += ["cluster.account=physics", "cluster.options={constraint:gpu,exclusive:true}"]
    words += ['cluster.setup=["module load openmpi","export NCCL_DEBUG=WARN"]', "strategy=mpi", "output=runs/tau"]
    script = tmp_path / "runs" / "tau" / "job.sh"
    assert cli.main(["train", "data.train=data/my traces", *words, "optimizer.lr=1e-3"]) == 0
    assert script.read_text().splitlines() == [
        "#!/bin/bash",
        "#SBATCH --job-name=etalumis-tau",
        f"#SBATCH --output={tmp_path}/runs/tau/slurm-%j.out",
        "#SBATCH --open-mode=append",
        "#SBATCH --nodes=16",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --time=1-00:00:00",
        "#SBATCH --partition=long",
        "#SBATCH --account=physics",
        "#SBATCH --signal=USR1@600",
        "#SBATCH --requeue",
        "#SBATCH --constraint=gpu",
        "#SBATCH --exclusive",
        "",
        f"cd {tmp_path} || exit",
        "module load openmpi",
        "export NCCL_DEBUG=WARN",
        f"srun --wait=5 --kill-on-bad-exit=0 --mpi=pmix --cpus-per-task=8 {sys.executable} -m etalumis train "
        "'data.train=data/my traces' strategy=mpi output=runs/tau optimizer.lr=1e-3",
        "code=$?",
        'if [ "$code" -eq 75 ]; then  # saved and stopped: the same goes on',
        '    scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$code"',
    ]
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_more_nodes_are_one_word(tmp_path: Path) -> None:
    def script(*words: str) -> list[str]:
        config = settings("cluster=slurm", "strategy=ddp_rows", f"output={tmp_path}", *words)
        job = build(config["cluster"])
        assert isinstance(job, Slurm)
        return job.script(config, ["strategy=ddp_rows"]).splitlines()

    few, many = script(), script("cluster.nodes=1024")
    assert [(a, b) for a, b in zip(few, many, strict=True) if a != b] == [("#SBATCH --nodes=1", "#SBATCH --nodes=1024")]
    assert "--mpi" not in "".join(few), "torch.distributed needs none"
    assert not [line for line in few if "None" in line]


def test_words_come_through_the_shell(tmp_path: Path) -> None:
    words = ["a b", "network.proposals={Uniform: histogram}", 'x="$HOME"', "y='`id`'", "z=[1,2]*"]
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {shlex.join(words)}"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines() == words
    assert command(words)[-len(words) :] == words


def test_choices_of_the_user_s_own_go_with_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "network").mkdir(parents=True)
    (tmp_path / "mine" / "network" / "own.yaml").write_text("defaults: [small]\n")
    words = ["data.train=data", "network=own", "output=runs/own", "cluster=slurm", "--config-dir", "mine"]
    assert cli.main(["train", *words]) == 0
    assert f"--config-dir {tmp_path}/mine" in (tmp_path / "runs" / "own" / "job.sh").read_text()


def test_a_script_is_submitted_if_asked(slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "data.train=data", f"output={tmp_path / 'd'}", "cluster=slurm"]
    assert cli.main(words) == 0
    assert f"sbatch {tmp_path}/d/job.sh" in capsys.readouterr().out
    assert not (slurm / "sbatch").exists()
    assert cli.main([*words, "cluster.submit=true"]) == 0
    assert f"job 4242 writes {tmp_path}/d/slurm-4242.out" in capsys.readouterr().out
    assert (slurm / "sbatch").read_text().strip() == f"--parsable {tmp_path}/d/job.sh"


# --- running it -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "branching"
    simulate(branching_model, path, 330, model="branching", workers=0, chunk_size=50)
    return path


def run_job(script: Path) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, "PATH": os.environ["PATH"], "STATE": os.environ["STATE"]}
    environment |= {"SLURM_JOB_ID": "4242", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "localhost"}
    return subprocess.run(
        ["bash", str(script)], env=environment, capture_output=True, text=True, check=False, timeout=150
    )


@pytest.mark.slow
@pytest.mark.timeout(320)
def test_a_job_trains_is_queued_again_and_goes_on(slurm: Path, data: Path, tmp_path: Path) -> None:
    """SLURM's environment makes two ranks of torch.distributed; one that was stopped goes on by the same script."""
    output = tmp_path / "d"
    words = [f"data.train={data}", f"output={output}", *SMALL, "strategy=ddp_rows", "trainer.max_epochs=2"]
    job = ["cluster=slurm", "cluster.ranks_per_node=2", "time_limit=0.01"]
    assert cli.main(["train", *words, *job]) == 0
    script = output / "job.sh"
    stopped = run_job(script)
    assert stopped.returncode == 75, stopped.stderr
    assert (slurm / "scontrol").read_text() == "requeue 4242\n"
    script.write_text(script.read_text().replace(" time_limit=0.01", ""))
    done = run_job(script)
    assert done.returncode == 0, done.stderr
    assert "goes on after step 1" in done.stderr
    assert (done.stdout + done.stderr).count("network.pt") == 1
    assert (slurm / "scontrol").read_text() == "requeue 4242\n"
    assert json.loads((output / "result.json").read_text())["steps"] > 1


def test_submitit_writes_what_we_ask_for(slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("submitit", reason="pip install 'etalumis[slurm]'")
    words = ["cluster=submitit", "cluster.nodes=16", "cluster.ranks_per_node=4", "cluster.cores_per_rank=8"]
    words += ["cluster.gpus_per_node=4", "cluster.time=1-00:00:00", "cluster.grace=600", "cluster.partition=long"]
    words += ["cluster.account=physics", "cluster.options={constraint:gpu,exclusive:true}", "strategy=mpi"]
    words += ['cluster.setup=["module load openmpi"]', f"output={tmp_path / 'tau'}"]
    assert cli.main(["train", "data.train=data", *words]) == 0
    assert "job 4242 of 16 × 4 ranks writes" in capsys.readouterr().out
    script = tmp_path / "tau" / "submitit" / "4242_submission.sh"
    lines = script.read_text().splitlines()
    asked = "nodes=16 ntasks-per-node=4 cpus-per-task=8 gpus-per-node=4 time=1440 partition=long account=physics "
    asked += "signal=USR2@600 constraint=gpu exclusive job-name=etalumis-tau open-mode=append"
    assert {f"#SBATCH --{option}" for option in asked.split()} <= set(lines)
    assert lines.index("module load openmpi") < [line.startswith("srun") for line in lines].index(True)
    (srun,) = [line for line in lines if line.startswith("srun")]
    assert "--wait=5 --kill-on-bad-exit=0 --mpi=pmix --cpus-per-task=8" in srun
    assert f"{sys.executable} -u -m submitit.core._submit" in srun
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.slow
@pytest.mark.timeout(320)
def test_submitit_trains_and_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On this machine, with two ranks: after each iteration its time is over, and the next job goes on."""
    pytest.importorskip("submitit", reason="pip install 'etalumis[slurm]'")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    output = tmp_path / "d"
    words = [f"data.train={data}", f"output={output}", *SMALL, "strategy=ddp_rows", "trainer.max_steps=2"]
    words += ["cluster=submitit", "cluster.executor=local", "cluster.ranks_per_node=2", "time_limit=0.01"]
    assert cli.main(["train", *words]) == 0
    assert capsys.readouterr().out.count("network.pt") == 1
    (log,) = (output / "submitit").glob("*_0_log.err")
    assert "goes on after step 1" in log.read_text()
    assert json.loads((output / "result.json").read_text())["steps"] == 2
