"""The documents keep up with the code: links lead somewhere, the program in the README runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import etalumis as et
from cpp_programs import require_zmq_headers, tool

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_program_in_the_readme_recovers_the_posterior() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in program.splitlines() if line]) <= 12, "the README promises a short program"
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(program, "README.md", "exec"), names)
    posterior = names["posterior"]
    assert posterior.mean("mu") == pytest.approx(7.25, abs=0.25)
    assert posterior.std("mu") == pytest.approx(0.9129, abs=0.2)


@pytest.mark.slow
def test_cpp_program_in_the_readme_builds_and_gives_the_posterior(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```cpp\n(.*?)```", text, re.DOTALL)
    (lines,) = re.findall(r"```cmake\n(.*?)```", text, re.DOTALL)
    assert len(program.splitlines()) <= 20, "the README promises a short program"
    cmake = tool("cmake")
    require_zmq_headers()
    (tmp_path / "sim.cpp").write_text(program, encoding="utf-8")
    head = "cmake_minimum_required(VERSION 3.16)\nproject(sim LANGUAGES CXX)\n"
    (tmp_path / "CMakeLists.txt").write_text(head + lines, encoding="utf-8")
    package = subprocess.run(
        [sys.executable, "-m", "etalumis.ppx", "--cmakedir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    build = tmp_path / "build"
    for command in ([cmake, "-S", tmp_path, "-B", build, f"-Detalumis_DIR={package}"], [cmake, "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    with et.RemoteModel(command=[str(build / "sim"), "{address}"]) as model:
        posterior = et.posterior(model, {"obs0": 8.0, "obs1": 9.0}, num_traces=50_000)
    assert posterior.mean("mu") == pytest.approx(7.25, abs=0.25)
