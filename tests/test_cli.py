"""The command line as a user meets it: real processes, help that teaches, errors in one line."""

import json
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import etalumis as et
from etalumis import cli
from etalumis.conf.build import ConfigError, build_model, locate
from etalumis.conf.compose import compose, plain
from etalumis.conf.help import choices, header, read, settings, verb_help
from etalumis.report import Event
from etalumis.storage import Dataset

pytestmark = pytest.mark.timeout(60)

VERBS = list(cli.VERBS)
GROUPS = sorted(entry.name for entry in files("etalumis.conf").iterdir() if entry.is_dir() and entry.name[0] != "_")


def etalumis(*words: str, cwd: Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a user does."""
    command = [sys.executable, "-m", "etalumis.cli", *words]
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def fails(capsys: pytest.CaptureFixture[str], *words: str, code: int = 1) -> str:
    """Run a command that must fail; returns what it says, one message without a traceback."""
    assert cli.main(words) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.startswith("etalumis")
    return said


# --- help -----------------------------------------------------------------------------------------


def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"]):
        assert cli.main(words) == 0
        shown = capsys.readouterr().out
        assert all(f"\n  {verb} " in shown for verb in VERBS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == et.__version__


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    about, examples = header(read(f"{verb}.yaml"))
    assert shown.startswith(f"usage: etalumis {verb}")
    assert about[0] in shown
    assert examples
    assert all(f"etalumis {verb}" in example for example in examples)
    for setting in settings(read(f"{verb}.yaml")):
        assert f"{setting.key}={setting.default}" in shown
        assert setting.comment, f"{setting.key} in {verb}.yaml has no comment to show"


@pytest.mark.parametrize("verb", VERBS)
def test_examples_in_the_help_compose(verb: str) -> None:
    _, examples = header(read(f"{verb}.yaml"))
    for example in examples:
        words = example.split(f"etalumis {verb}", 1)[1].split()  # a launcher may stand before
        compose(verb, words)


def test_help_shows_the_settings_of_a_choice() -> None:
    setting = "\n    engine.chains=4"
    assert setting in verb_help("infer", ["engine=lmh"])
    assert setting not in verb_help("infer", ["engine=ic"])


def test_help_shows_what_a_choice_builds_on() -> None:
    shown = verb_help("train", ["optimizer=adam_larc"])
    assert "optimizer.lr=1.0e-3" in shown
    assert "optimizer.larc=update" in shown


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_says_what_it_is(group: str) -> None:
    assert choices(group)
    for name in choices(group):
        verb = {"simulator": "infer", "engine": "infer", "demo": "demo"}.get(group, "train")
        shown = verb_help(verb)
        assert re.search(rf"^  {name} +\S", shown, re.M), f"{group}/{name}.yaml needs a comment on top"


def test_help_in_any_folder_writes_nothing(tmp_path: Path) -> None:
    shown = etalumis("simulate", "--help", cwd=tmp_path).stdout
    assert shown.startswith("usage: etalumis simulate")
    assert list(tmp_path.iterdir()) == []


def test_configuration_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "num_traces=7", "output=x", "--cfg"]) == 0
    assert "num_traces: 7\n" in capsys.readouterr().out


def test_choices_of_the_user_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "simulator").mkdir()
    (tmp_path / "simulator" / "mine.yaml").write_text("_target_: mine:model\n")
    assert cli.main(["event", "simulator=mine", "--config-dir", str(tmp_path), "--cfg"]) == 0
    assert "_target_: mine:model" in capsys.readouterr().out


# --- simulators -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [c for c in choices("simulator") if c not in ("custom", "ppx", "pythia_tau")])
def test_simulators_run(name: str) -> None:
    model = build_model(plain(compose("event", [f"simulator={name}"]))["simulator"])
    assert model.name == name
    assert len(et.prior(model, num_traces=3)) == 3


def test_simulator_settings_arrive() -> None:
    config = plain(compose("event", ["simulator=tau", "simulator.detector.shape=[4,5,6]", "simulator.px=[-1,1]"]))
    tau = build_model(config["simulator"]).function  # type: ignore[attr-defined]
    assert tau.detector.shape == (4, 5, 6)
    assert tau.px.low == -1.0


def test_custom_simulators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import etalumis as et\n"
        "def plain():\n    return 1.0\n"
        "def scaled(factor):\n    return 2.0 * factor\n"
        "class Thing:\n    def __call__(self):\n        return 3.0\n"
        "made = et.Model(plain, 'made')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    results = {}
    for target, arguments in (("plain", {}), ("scaled", {"factor": 3.0}), ("Thing", {})):
        model = build_model({"_target_": f"mine:{target}", "name": None, **arguments})
        results[model.name] = et.prior(model, num_traces=1).results[0]
    assert results == {"plain": 1.0, "scaled": 6.0, "Thing": 3.0}
    for target, complaint in (
        ("mine:other", "has no 'other'"),
        ("nowhere.at_all:model", "no module 'nowhere'"),
        ("mine", "not of the form"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            locate(target)


# --- verbs ----------------------------------------------------------------------------------------


def test_from_simulate_to_infer(tmp_path: Path) -> None:
    """In real processes and a foreign folder: nothing but what was asked for is written there."""
    done = etalumis("simulate", "simulator=gaussian", "num_traces=3000", "output=data", "workers=2", cwd=tmp_path)
    assert "3,000 traces of gaussian" in done.stdout
    assert "obs0, obs1" in done.stdout
    assert len(Dataset(tmp_path / "data")) == 3000
    again = etalumis("simulate", "simulator=gaussian", "num_traces=3000", "output=data", "workers=1", cwd=tmp_path)
    assert "3,000 traces of gaussian" in again.stdout

    (tmp_path / "seen.json").write_text(json.dumps({"obs0": 8.0, "obs1": 9.0}))
    words = ["engine=is", "engine.dataset=data", "simulator=gaussian", "observe=seen.json", "output=post"]
    done = etalumis("infer", *words, cwd=tmp_path)
    assert "Posterior of gaussian" in done.stdout
    post = et.Posterior.load(tmp_path / "post")
    assert abs(post.mean("mu") - 7.25) < 5 * 0.9129 / post.ess**0.5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "post", "seen.json"]


def test_event_with_its_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "event.npz"
    small = "simulator.detector.shape=[4,5,6]"
    assert cli.main(["event", "simulator=tau", small, "seed=3", "index=5", f"output={path}"]) == 0
    assert "decay_channel" in capsys.readouterr().out
    event = Event.load(path)
    assert event.observe["detector"].shape == (4, 5, 6)
    assert {"px", "py", "pz", "decay_channel", "missing_et", "energy_1"} <= event.truth.keys()
    model = build_model(plain(compose("event", ["simulator=tau", small]))["simulator"])
    batch = et.prior(model, num_traces=6, seed=3).traces
    assert batch.draws("px")[1][5] == event.truth["px"]
    (column,) = batch.observes
    assert column.values is not None
    np.testing.assert_array_equal(column.values[5], event.observe["detector"])


def test_observations_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["engine=lmh", "engine.burn_in=10", "simulator=gaussian", "num_traces=40", f"output={tmp_path / 'p'}"]
    assert cli.main(["infer", *words, "observe.obs0=8.0", "observe.obs1=9.0"]) == 0
    assert et.Posterior.load(tmp_path / "p").info["observed"] == ["obs0", "obs1"]
    assert "saved in" in capsys.readouterr().out


# --- errors ---------------------------------------------------------------------------------------


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert "simulate, sort, inspect, validate, train" in fails(capsys, "simlate", code=2)


@pytest.mark.parametrize("verb", VERBS)
def test_unknown_key(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Could not override 'no_such_key'" in fails(capsys, verb, "no_such_key=3")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulate"], "output must be given"),
        (["simulate", "simulator=taw", "output=x"], "Could not find 'simulator/taw'"),
        (["simulate", "simulator=custom", "output=x"], r"simulator\._target_ must be given"),
        (["simulate", "simulator=custom", "simulator._target_=a.b:c", "output=x"], "there is no module 'a'"),
        (["simulate", "simulator.control=all", "output=x"], "control must be"),
        (["simulate", "encoding.observes=none", "output=x"], "encoding.observes is"),
        (["simulate", "--workers", "2"], "there is no option --workers"),
        (["event", "--config-dir"], "--config-dir needs a folder"),
        (["infer", "output=x"], "nothing to infer from"),
        (["infer", "output=x", "observe=nowhere.npz"], "there is no event file nowhere.npz"),
        (["infer", "output=x", "observe=nowhere.json"], "there is no observation file nowhere.json"),
        (["infer", "output=x", "observe.detector=1.0"], "needs a trained network"),
        (["infer", "output=x", "engine=lmh", "engine.chains=0", "observe.detector=1.0"], "chains.*at least 1"),
        (["simulate", "num_traces=abc", "output=x"], "num_traces=abc must be a whole number"),
        (["simulate", "num_traces=1e4", "output=x"], r"num_traces=10000\.0 must be a whole number"),
        (["simulate", "num_traces=null", "output=x"], "num_traces must be given"),
        (["simulate", "seed=true", "output=x"], "seed=True must be a whole number"),
        (["simulate", "max_failures=abc", "output=x"], "max_failures=abc must be a number"),
        (["event", "simulator=gaussian", "output=ev.json"], "ev.json would not be read as one; name it ev.npz"),
        (["event", "index=first"], "index=first must be a whole number"),
        (["infer", "output=x", "num_traces=abc", "observe.obs0=1.0"], "num_traces=abc must be a whole number"),
        (["infer", "output=x", "engine=rmh", "engine.chains=two", "observe.obs0=1.0"], r"engine\.chains=two must be"),
        (["demo", "demo.rmh.steps=many"], r"demo\.rmh\.steps=many must be a whole number"),
        (["infer", "output=x", "engine=lmh", "observe.obs0=abc"], "observe.obs0 must be a number.* got 'abc'"),
        (["infer", "output=x", "engine=lmh", "observe.obs0=[1.0,null]"], "observe.obs0 must be a number"),
        (["infer", "output=x", "engine=lmh", "observe.obs.a=1.0"], "observe.obs must be a number"),
        (
            ["infer", "output=x", "engine=lmh", "simulator=gaussian", "observe.obs7=1.0", "num_traces=4"],
            "'obs7'.*'obs0', 'obs1'",
        ),
    ],
)
def test_errors_say_what_to_do(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(said, fails(capsys, *words))
    assert list(tmp_path.iterdir()) == []


def test_simulators_that_can_not_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unfit.py").write_text(
        "import etalumis as et\nfrom etalumis.distributions import Normal\nnumber = 3\n"
        "def thing():\n    et.observe(Normal(et.sample(Normal(0.0, 1.0)), 1.0), name='y')\n"
        "    et.tag(object(), name='thing')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    words = ["engine=lmh", "engine.burn_in=1", "num_traces=4", "simulator=custom", "observe.y=1.0", "output=x"]
    assert "a function or a class" in fails(capsys, "infer", *words, "simulator._target_=unfit:number")
    assert "'thing' holds <object" in fails(capsys, "infer", *words, "simulator._target_=unfit:thing")


def test_bad_observation_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "seen.json"
    for content, said in (
        ("[1, 2]", "must hold an object"),
        ("{", "is not JSON"),
        ('{"obs0": "abc"}', "observe.obs0 must be a number"),
    ):
        path.write_text(content)
        assert said in fails(capsys, "infer", "engine=lmh", f"observe={path}", "output=x")


def test_failing_simulator_is_shown_with_its_traceback(tmp_path: Path) -> None:
    """One message from us, and in it where the user's own code failed."""
    (tmp_path / "mine.py").write_text("def broken():\n    raise ZeroDivisionError('no beam')\n")
    words = ["simulator=custom", "simulator._target_=mine:broken", "num_traces=5", "output=data", "workers=1"]
    said = etalumis("simulate", *words, cwd=tmp_path, code=1).stderr
    assert said.startswith("etalumis simulate: the execution of trace 0 (seed 0) of 'broken' failed")
    assert "mine.py" in said
    assert "no beam" in said


@pytest.mark.parametrize("how", ["variable", "setting"])
def test_tracebacks_on_request(how: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["infer", "output=x", "observe=nowhere.npz"]
    if how == "variable":
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    else:
        words = [*words, "debug=true"]
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "nowhere" in said


@pytest.mark.parametrize("bug", [lambda config: json.loads("{"), lambda config: cli.use_threads(config) + 1])
def test_bugs_are_not_hidden(bug: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.RUN, "event", bug)
    assert cli.main(["event"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_missing_extra(tmp_path: Path) -> None:
    """Without the package the message names the extra; the process can't import it, as where it isn't installed."""
    program = (
        "import sys; sys.modules['pythia8mc'] = None\n"
        "from etalumis.cli import main; raise SystemExit(main(sys.argv[1:]))"
    )
    words = ["simulate", "simulator=pythia_tau", "output=x"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "etalumis[pythia]" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_multirun_is_for_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--multirun is for etalumis train" in fails(capsys, "infer", "--multirun", "simulator=gaussian")
    assert "give settings several values" in fails(capsys, "train", "--multirun", "data.train=data")
    assert cli.main(["train", "search=lstm", "data.train=data", "--cfg"]) == 0
    assert "network.core.layers: 1,2,3,4" in capsys.readouterr().out


def test_help_of_searches_and_tuning(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "search=learning_rate", "tune=lr", "--help"]) == 0
    shown = capsys.readouterr().out
    for said in ("search.workers=1", "search.sweep.minibatch=", "tune.steps=150", "--multirun K=A,B", "resume=auto"):
        assert said in shown


@pytest.mark.parametrize(("core", "size"), [("lstm", 4 * 64), ("gru", 3 * 64), ("transformer", 64)])
def test_the_core_of_a_network_is_a_choice_of_its_own(core: str, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    from etalumis.networks import InferenceNetwork

    settings = plain(compose("train", ["network=small", f"core={core}", "data.train=x"]))["network"]
    assert InferenceNetwork(settings, {"y": (4,)}).core.width == size
    assert cli.main(["train", f"core={core}", "--help"]) == 0
    assert f"network.core.kind={core}" in capsys.readouterr().out
