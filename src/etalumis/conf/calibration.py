"""``etalumis calibrate``: judge an engine by events with known truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etalumis.conf.build import build_engine, build_model, close
from etalumis.conf.quiet import ENGINES, errors_only
from etalumis.inference.calibration import Calibration, calibrate


def run(config: Mapping[str, Any]) -> Calibration:
    """The command; its settings are explained in ``conf/calibrate.yaml``."""
    engine = build_engine(config["engine"])
    model = build_model(config["simulator"])
    names = config["names"]
    try:
        with errors_only(ENGINES):  # one warning per event would drown the verdict
            found = calibrate(model, engine, config["num_events"], config["num_traces"], names, config["seed"])
    finally:
        close(model)
    found.save(Path(config["output"]), f"Calibration of {model.name} by {type(engine).__name__}")
    return found
