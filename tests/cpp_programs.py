"""Compiles the C++, C and Fortran programs of the tests, each once for a given source and compiler."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRONT_END = ROOT / "src" / "etalumis" / "ppx" / "cpp"
BUILD = ROOT / "build" / "tests-cpp"
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror")
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-fno-optimize-sibling-calls")


@cache
def front_end_digest() -> bytes:
    """Changes with any source of the front end."""
    digest = hashlib.sha256()
    for path in sorted(path for path in FRONT_END.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(FRONT_END)).encode() + b"\0" + path.read_bytes())
    return digest.digest()


def tool(name: str) -> str:
    """A compiler or build tool; where it is missing the test is skipped, in continuous integration it fails."""
    found = shutil.which(name)
    if found is None:
        missing(f"{name} is not installed")
    return found


def missing(what: str) -> None:
    message = f"{what}: install g++, gfortran, cmake and the ZeroMQ headers (Debian: libzmq3-dev)"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@cache
def require_zmq_headers() -> None:
    """Skip where zmq.h or the library behind it is not installed."""
    probe = "#include <zmq.h>\nint main(void) { return zmq_errno(); }\n"
    command = [tool("g++"), "-x", "c++", "-", "-o", "/dev/null", "-lzmq"]
    if subprocess.run(command, input=probe, text=True, capture_output=True, check=False).returncode:
        missing("zmq.h or libzmq is not installed")


def compiled(source: Path, *options: str, zmq: bool = True) -> Path:
    """A C++ program built with the flags that the CMake package gives, warnings being errors."""
    compiler = tool("g++")
    libraries: Sequence[str] = ()
    if zmq:
        require_zmq_headers()
        libraries = ("-rdynamic", "-lzmq", "-ldl", "-pthread")
    command = [compiler, *FLAGS, *STRICT, f"-I{FRONT_END / 'include'}", *options, str(source), *libraries]
    key = hashlib.sha256(front_end_digest() + source.read_bytes() + "\0".join(command).encode()).hexdigest()[:16]
    program = BUILD / f"{source.stem}-{key}"
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{source.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test workers share the folder
        if not program.exists():
            made = program.with_suffix(".new")
            done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
            made.rename(program)
    return program
