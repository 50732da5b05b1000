"""The command line's checks: calibrate, and diagnoses in reports; diagnosing without Matplotlib."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import etalumis as et
from etalumis import cli
from etalumis.inference import InferenceError
from etalumis.report.report import load_posteriors
from etalumis.simulators.classics import gaussian
from inference_checks import OBSERVED


def weighted(num_traces: int = 400) -> et.Posterior:
    return et.posterior(et.Model(gaussian), OBSERVED, num_traces=num_traces, seed=1)


def test_calibrate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    words = ["engine=is", "simulator=gaussian", "num_events=40", "num_traces=300", "names=[mu]", f"output={tmp_path}"]
    assert cli.main(["calibrate", *words]) == 0
    shown = capsys.readouterr().out
    assert "Calibration over 40 events" in shown
    assert "no sign of miscalibration" in shown
    names = ["calibration.json", "calibration.md", "calibration.png", "calibration_raw.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    numbers = json.loads((tmp_path / "calibration.json").read_text())
    assert list(numbers["variables"]) == ["mu", "all variables (TARP)"]
    assert np.shape(numbers["ranks"]) == (40, 2)
    assert numbers["miscalibrated"] == []
    assert "by ImportanceSampling" in (tmp_path / "calibration.md").read_text()


def test_calibrate_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["calibrate", "simulator=gaussian"]) == 1
    assert "needs a trained network" in capsys.readouterr().err
    words = ["engine=is", "simulator=gaussian", "num_events=3", "names=[nu]", f"output={tmp_path}"]
    assert cli.main(["calibrate", *words]) == 1
    assert "'nu' is a number that every event has exactly once; those that are: 'mu'" in capsys.readouterr().err
    assert cli.main(["calibrate", "engine=is", "num_events=many"]) == 1
    assert "num_events=many must be a whole number" in capsys.readouterr().err


def test_reports_diagnose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    weighted().save(tmp_path / "post")
    words = [f"posteriors=[{tmp_path / 'post'}]", "labels=[by weights]", f"output={tmp_path / 'report'}"]
    assert cli.main(["report", *words]) == 0
    assert "by weights: problems" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "report" / "diagnose_by_weights" / "diagnosis.md").exists()
    assert cli.main(["report", *words[:2], f"output={tmp_path / 'plain'}", "diagnose=false"]) == 0
    assert not any(path.is_dir() for path in (tmp_path / "plain").iterdir())


def test_posteriors_of_a_report_have_names_that_tell_them_apart(tmp_path: Path) -> None:
    for folder in ("a/post", "b/post", "b/other"):
        weighted(20).save(tmp_path / folder)
    one, other, third = (tmp_path / folder for folder in ("a/post", "b/post", "b/other"))
    assert list(load_posteriors([one])) == ["ImportanceSampling"]
    assert list(load_posteriors([one, third])) == ["post", "other"]
    assert list(load_posteriors([one, other])) == [str(one), str(other)]
    assert list(load_posteriors([one, other], ["A", "B"])) == ["A", "B"]
    with pytest.raises(ValueError, match="given twice"):
        load_posteriors([one, one])


def test_numbers_need_no_matplotlib_and_figures_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    post = weighted(100)
    found = post.diagnose()
    assert found.table
    for draw in (lambda: found.figures, post.plot, post.plot_addresses):
        with pytest.raises(InferenceError, match=r"pip install 'etalumis\[report\]'"):
            draw()
