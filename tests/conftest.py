"""Fixtures for every test."""

import logging
import signal
import sys
from collections.abc import Iterator

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a shell: the programs that tests interrupt would inherit that and not listen.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def torch_state() -> dict[str, object]:
    """Return torch's process-wide settings; empty while torch has not been imported.

    The global random generator is left out: layers draw their first weights from it.
    """
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_default_dtype"):
        return {}
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients enabled": torch.is_grad_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "autocast on CPU": torch.is_autocast_enabled("cpu"),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(autouse=True)
def torch_state_unchanged() -> Iterator[None]:
    """Fail a test that leaves torch's global settings changed: it would change the tests after it."""
    before = torch_state()
    yield
    after = torch_state()
    changed = {name: (old, after[name]) for name, old in before.items() if after[name] != old}
    assert not changed, f"the test changed torch's global state (before, after): {changed}; restore it"


@pytest.fixture(autouse=True)
def logger_levels_unchanged() -> Iterator[None]:
    """Fail a test after which the package's warnings would no longer be heard."""
    loggers = [logging.getLogger(name) for name in ("etalumis", "etalumis.inference")]
    before = [logger.level for logger in loggers]
    yield
    after = [logger.level for logger in loggers]
    assert after == before, "the test changed what loggers tell; commands restore it"
