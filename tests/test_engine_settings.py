"""Every setting of an engine has its place on the command line, with the engine's own default, or a reason not to."""

from dataclasses import fields
from typing import Any

import pytest

import etalumis as et
from etalumis.conf.build import locate
from etalumis.conf.compose import compose, plain
from etalumis.conf.help import read, settings

ENGINES = {"ic": et.IC, "is": et.ImportanceSampling, "lmh": et.LMH, "rmh": et.RMH}
LEFT_OUT = {
    "is": {"proposals"},  # distributions: Python only
    "lmh": {"proposals"},  # of a network; engine=rmh_ic has them
    "rmh": {"proposals"},
}
OTHER_DEFAULTS = {
    "checkpoint": None,  # a key of its own beside the engine
    "refine": None,  # the same as none at rounds=0
}


def composed(name: str) -> dict[str, Any]:
    config: dict[str, Any] = plain(compose("infer", [f"engine={name}", "output=post"]))["engine"]
    return config


@pytest.mark.parametrize("name", ENGINES)
def test_every_setting_is_on_the_command_line(name: str) -> None:
    engine, config = ENGINES[name], composed(name)
    assert locate(config.pop("_target_")) is engine
    assert set(config) == {field.name for field in fields(engine)} - LEFT_OUT.get(name, set())
    if name == "ic":
        refine = config["refine"]
        assert set(refine) - {"_target_"} == {field.name for field in fields(et.Refine)}
    made = engine(**{"checkpoint": ""} if name == "ic" else {})
    for key in config.keys() - OTHER_DEFAULTS.keys():
        assert config[key] == getattr(made, key), f"engine.{key} has another default than the engine"


def test_chains_with_a_network_have_the_settings_of_those_without() -> None:
    config = composed("rmh_ic")
    assert config.keys() - {"proposals"} == composed("rmh").keys()
    assert composed("rmh").items() <= config.items()


@pytest.mark.parametrize("name", [*ENGINES, "rmh_ic"])
def test_the_help_explains_every_setting(name: str) -> None:
    for setting in settings(read(f"engine/{name}.yaml")):
        assert setting.comment or setting.default.startswith("${"), f"engine.{setting.key} has no comment to show"


def test_settings_that_errors_advise_arrive() -> None:
    words = ["engine=rmh", "engine.starts=500", "engine.prior_fraction=0.3", "output=post"]
    config = plain(compose("infer", words))["engine"]
    engine = locate(config.pop("_target_"))(**config)
    assert (engine.starts, engine.prior_fraction) == (500, 0.3)
