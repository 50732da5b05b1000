"""What is installed from the wheel is complete and works away from the source tree."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from etalumis.cli import VERBS

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy: a build leaves files behind, and must not pick up old ones."""
    copy = tmp_path_factory.mktemp("source")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", copy / "src", ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    run_pip("wheel", "--no-build-isolation", "--wheel-dir", str(copy / "dist"), str(copy))
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a folder of its own, beside the environment's copy of the sources."""
    target = tmp_path_factory.mktemp("installed")
    run_pip("install", "--target", str(target), str(wheel))
    return target


def run_pip(command: str, *arguments: str) -> None:
    """Run pip offline and without dependencies: the environment has them already."""
    pip = [sys.executable, "-m", "pip", command, "--no-deps", "--no-index", "--no-input", "--quiet"]
    done = subprocess.run([*pip, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def run_installed(installed: Path, *command: str, cwd: Path) -> str:
    """Run a Python command that sees the installed wheel before any other copy; return its output."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def is_shipped(path: Path) -> bool:
    """Whether a file is part of the package, not a cache nor the setting of an editor or formatter."""
    return path.parent.name != "__pycache__" and not path.name.startswith(".")


def test_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    files = (path for path in (ROOT / "src" / "etalumis").rglob("*") if path.is_file())
    expected = {str(path.relative_to(ROOT / "src")) for path in files if is_shipped(path)}
    assert expected - packed == set(), "add the kind of file to [tool.setuptools.package-data]"
    assert "etalumis/py.typed" in packed
    assert any(name.startswith("etalumis/conf/") and name.endswith(".yaml") for name in packed)


def test_wheel_holds_nothing_but_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"etalumis"}


def test_installed_package_is_found_first(installed: Path, tmp_path: Path) -> None:
    where = run_installed(installed, "-c", "import etalumis; print(etalumis.__file__)", cwd=tmp_path)
    assert Path(where.strip()) == installed / "etalumis" / "__init__.py"


@pytest.mark.parametrize("verb", VERBS)
def test_command_line_finds_its_configs_from_any_folder(installed: Path, tmp_path: Path, verb: str) -> None:
    """Help composes the verb's configuration: it fails where the YAML files are not found."""
    shown = run_installed(installed, str(installed / "bin" / "etalumis"), verb, "--help", cwd=tmp_path)
    assert f"etalumis {verb}" in shown
    assert list(tmp_path.iterdir()) == [], "asking for help writes nothing"


def test_help_lists_the_verbs(installed: Path, tmp_path: Path) -> None:
    shown = run_installed(installed, str(installed / "bin" / "etalumis"), "--help", cwd=tmp_path)
    assert all(verb in shown for verb in VERBS)


def test_version_is_that_of_the_wheel(installed: Path, wheel: Path, tmp_path: Path) -> None:
    shown = run_installed(installed, str(installed / "bin" / "etalumis"), "--version", cwd=tmp_path)
    assert shown.split()[-1] == wheel.name.split("-")[1]
