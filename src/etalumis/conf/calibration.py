"""``etalumis calibrate``: judge an engine by events with known truth."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etalumis.conf.build import build_engine, build_model, close
from etalumis.inference.calibration import Calibration, calibrate


def run(config: Mapping[str, Any]) -> Calibration:
    """The command; its settings are explained in ``conf/calibrate.yaml``."""
    engine = build_engine(config["engine"])
    logging.getLogger("etalumis.inference").setLevel(logging.ERROR)  # one warning per event would drown the verdict
    model = build_model(config["simulator"])
    names = config["names"]
    try:
        found = calibrate(model, engine, config["num_events"], config["num_traces"], names, config["seed"])
    finally:
        close(model)
    found.save(Path(config["output"]), f"Calibration of {model.name} by {type(engine).__name__}")
    return found
