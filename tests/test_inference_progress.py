"""What chains tell while they run."""

import pytest

import etalumis as et
from etalumis.inference import metropolis
from etalumis.simulators.classics import gaussian
from inference_checks import OBSERVED


class Clock:
    """So many seconds go by whenever somebody looks."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += self._seconds
        return self.now

    perf_counter = monotonic


@pytest.mark.parametrize(("seconds", "reports"), [(10.0, 70), (0.01, 5), (1e-6, 2)])
def test_chains_report_by_the_clock_however_long_a_step_takes(
    seconds: float, reports: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metropolis, "time", Clock(seconds))
    told: list[tuple[int, str]] = []
    engine = et.RMH(chains=1, burn_in=20, starts=5)
    et.posterior(et.Model(gaussian), OBSERVED, engine, 50, progress=lambda *words: told.append(words))
    steps = [amount for amount, _ in told if amount]
    assert sum(steps) == 70
    assert len(steps) == reports
    assert all("acceptance" in note for amount, note in told if amount)
