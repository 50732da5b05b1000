"""The CMake package, the C and Fortran interfaces, and the adaptors of generators: built, run and compared."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from cpp_programs import BUILD, FRONT_END, ROOT, STRICT, compiled, front_end_digest, missing, require_zmq_headers, tool
from etalumis.distributions import Categorical, Normal, Poisson, Stream, Uniform
from etalumis.execution import Model, TraceBatch, run
from etalumis.ppx import messages as m
from etalumis.simulators import classics
from ppx_client import Client

HERE = Path(__file__).parent / "cpp"
SEED = 11
EXAMPLES = ROOT / "examples" / "ppx"


@cache
def place(option: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "etalumis.ppx", option], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


@cache
def built(language: str) -> Path:
    """The examples, built by their own CMakeLists with the package that the Python package ships."""
    require_zmq_headers()
    cmake = tool("cmake")
    tool("gfortran") if language == "fortran" else tool("g++")
    folder = BUILD / f"examples-{front_end_digest().hex()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    target = "gaussian" if language == "cpp" else f"gaussian_{language}"
    with (BUILD / "examples.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = [cmake, "-S", EXAMPLES, "-B", folder, f"-Detalumis_DIR={place('--cmakedir')}"]
        for command in (configure, [cmake, "--build", folder, "--target", target]):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / target


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    clients = []

    def start(*command: str | Path) -> Client:
        client = Client(command, tmp_path)
        clients.append(client)
        client.greet("script", "error")
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.mark.parametrize("language", ["cpp", "c", "fortran"])
def test_examples_built_by_cmake_equal_the_python_model(launch: Callable[..., Client], language: str) -> None:
    client = launch(built(language))
    batch = client.script(seed=SEED, count=100).traces
    model = Model(classics.gaussian)
    expected = TraceBatch.from_traces(list(run(model, indices=range(100), seed=SEED)), model.addresses)
    np.testing.assert_array_equal(batch.value, expected.value)
    np.testing.assert_array_equal(np.asarray(batch.result.values), np.asarray(expected.result.values))
    np.testing.assert_allclose(batch.log_prob, expected.log_prob, rtol=1e-13)
    assert [c.name for c in batch.observes] == ["obs0", "obs1"]
    for ours, theirs in zip(batch.observes, expected.observes, strict=True):
        np.testing.assert_array_equal(ours.values, theirs.values)
    (squared,) = batch.tags
    np.testing.assert_allclose(np.asarray(squared.values), np.asarray(expected.tags[0].values), rtol=3e-16)
    assert "gaussian" in batch.addresses[batch.address[0]].base


def test_places_are_told_without_zmq() -> None:
    assert Path(place("--cmakedir"), "etalumisConfig.cmake").is_file()
    assert Path(place("--includedir"), "etalumis", "simulator.hpp").is_file()
    assert "root_type Message" in Path(place("--schema")).read_text(encoding="utf-8")
    program = (
        "import sys; sys.modules.update(zmq=None, flatbuffers=None, torch=None)\n"
        "import runpy; sys.argv[1:] = ['--cmakedir']; runpy.run_module('etalumis.ppx', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == place("--cmakedir")


def test_headers_compile_alone_and_need_only_zeromq() -> None:
    """Each header of the front end includes what it uses; only one includes zmq.h."""
    compiler = tool("g++")
    require_zmq_headers()
    include = FRONT_END / "include"
    headers = sorted((include / "etalumis").glob("*.hpp"))
    users = [path.name for path in headers if "#include <zmq.h>" in path.read_text(encoding="utf-8")]
    assert users == ["connection.hpp"]
    program = "".join(f'#include "etalumis/{path.name}"\n' for path in reversed(headers))
    for text in (program, *(f'#include "etalumis/{path.name}"\n' for path in headers)):
        command = [compiler, "-std=c++17", "-fsyntax-only", *STRICT, f"-I{include}", "-x", "c++", "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, text + done.stderr


# --- C ------------------------------------------------------------------------------------------------------------


@cache
def c_interface() -> Path:
    """The C test program with the C++ source of the C interface."""
    compiler = tool("gcc")
    digest = hashlib.sha256((HERE / "interface.c").read_bytes() + front_end_digest()).hexdigest()[:16]
    header = BUILD / f"interface-{digest}.o"  # a program is made anew where its name is new
    BUILD.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{FRONT_END / 'include'}"]
    command = [compiler, *flags, "-c", str(HERE / "interface.c"), "-o", str(header)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return compiled(FRONT_END / "src" / "ppx.cpp", str(header))


def test_c_interface_has_every_family_alone_and_in_arrays(launch: Callable[..., Client]) -> None:
    client = launch(c_interface(), "families")
    batch = client.script(seed=SEED, first_index=2).traces
    drawn = [batch.distributions.distribution(row) for row in batch.distribution]
    assert [d.code for d in drawn[:11]] == [*range(1, 12)]
    assert drawn[0] == Normal(1.0, 2.0)
    assert drawn[11] == Normal(np.arange(6.0).reshape(2, 3), 0.5)
    assert drawn[12] == Categorical(np.array([[1.0, 2.0, 3.0], [3.0, 0.0, 1.0]]))
    assert drawn[13] == Poisson(np.array([3.0, 30.0, 300.0]))
    assert drawn[14] == Uniform(0.0, 1.0)
    assert batch.controlled.tolist() == [True, False] + [True] * 13
    assert [batch.names[n] for n in batch.name] == ["first"] + [""] * 10 + ["image"] + [""] * 3
    assert batch.addresses[batch.address[11]].base == "here"
    stream = Stream(SEED)
    stream.start(2)
    for ordinal, distribution in enumerate(drawn):
        stream.seek(ordinal)
        value = batch.value[batch.value_offsets[ordinal] : batch.value_offsets[ordinal + 1]]
        np.testing.assert_allclose(value, np.ravel(distribution.draw(stream)), rtol=1e-14)
    scalars = [*batch.value[:11], batch.value[-1]]
    assert np.asarray(batch.result.values)[0] == pytest.approx(100.0 + sum(scalars))
    image, count = batch.observes
    assert (image.name, image.shape, image.observed, count.observed) == ("y", (2, 3), False, True)
    assert np.asarray(batch.tags[0].values).shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("model", "says"), [("impossible", "Normal needs a finite mean"), ("gives_up", "the beam is off")]
)
def test_a_c_model_says_why_it_cannot_go_on(launch: Callable[..., Client], model: str, says: str) -> None:
    client = launch(c_interface(), model)
    answer = client.script(seed=SEED, count=3)
    assert answer.failed == 0
    assert says in answer.error
    reply = client.ask(m.Run())
    assert isinstance(reply, m.Error)
    assert says in reply.text


def test_a_c_model_learns_that_its_execution_is_over(launch: Callable[..., Client]) -> None:
    client = launch(c_interface(), "endless")
    assert client.script(seed=SEED, count=2, max_draws=50).lost == (0, 1)
    client.ask(m.Run())
    assert client.ask(m.Reset()) == m.Reset()
    assert isinstance(client.ask(m.Run()), m.Sample)


def test_an_address_that_is_taken_ends_the_program(tmp_path: Path) -> None:
    for program in ([built("c")], [c_interface(), "families"]):
        done = subprocess.run(
            [*program, f"ipc://{tmp_path}/no/such/folder"], capture_output=True, text=True, check=False, timeout=20
        )
        assert done.returncode == 1
        assert "can't listen at ipc://" in done.stderr


# --- generators of other libraries --------------------------------------------------------------------------------


def test_adaptors_route_every_library_through_the_protocol(launch: Callable[..., Client]) -> None:
    client = launch(compiled(HERE / "adaptors.cpp", f"-I{HERE / 'minimal'}"))
    batch = client.script(seed=SEED).traces
    result = np.asarray(batch.result.values)[0]
    assert {batch.distributions.distribution(row) for row in batch.distribution} == {Uniform(0.0, 1.0)}
    np.testing.assert_array_equal(result[:5], batch.value[:5])
    assert result[5] == np.floor(batch.value[5] * 2.0**32) / 2.0**32
    assert 0.0 < result[6] < 1.0, "drawn before the model ran"
    assert len(batch.value) == 6
    bases = [batch.addresses[a].base for a in batch.address]
    assert all(base.startswith("[generators()+0x") for base in bases)
    assert len(set(bases)) >= 5, "at the call stack of each"


@pytest.mark.parametrize(
    ("adaptor", "header", "flags"),
    [
        ("pythia8", "Pythia8/Basics.h", ()),
        ("clhep", "CLHEP/Random/RandomEngine.h", ()),
        ("gsl", "gsl/gsl_rng.h", ()),
        ("sherpa", "ATOOLS/Math/Random.H", ()),
    ],
)
def test_adaptor_compiles_with_the_library_itself(adaptor: str, header: str, flags: tuple[str, ...]) -> None:
    """Where the library is installed; the minimal declarations stand in for it elsewhere."""
    compiler = tool("g++")
    require_zmq_headers()
    probe = [compiler, "-std=c++17", "-fsyntax-only", *flags, "-x", "c++", "-"]
    if subprocess.run(probe, input=f"#include <{header}>\n", capture_output=True, text=True, check=False).returncode:
        pytest.skip(f"{header} is not installed")
    text = f'#include "etalumis/adaptors/{adaptor}.hpp"\n'
    command = [*probe[:2], f"-I{FRONT_END / 'include'}", *probe[2:]]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_missing_tools_are_told_and_fail_in_continuous_integration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="libzmq3-dev"):
        tool("no-such-compiler")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="libzmq3-dev"):
        missing("zmq.h")
    assert shutil.which("no-such-compiler") is None
