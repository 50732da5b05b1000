"""The rooms of the package import one way, and light ones stay light.

The imports are read from the syntax tree, so lazy ones inside functions count too.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "etalumis"

CORE_ROOMS = ("distributions", "execution", "storage", "ppx", "simulators", "networks", "optim", "inference")
# The Lightning and Hydra side and the programs: one layer, which may import all others.
TOP_ROOMS = frozenset("strategies datamodules lit_models callbacks conf cli demo report".split())
RANK = {room: rank for rank, room in enumerate(CORE_ROOMS)} | dict.fromkeys(TOP_ROOMS, len(CORE_ROOMS))

# Third-party packages and the rooms that may import them; every other package may be used anywhere.
ALLOWED_IN = {
    "torch": {"networks", "optim", "inference"} | TOP_ROOMS,
    "pytorch_lightning": TOP_ROOMS,
    "lightning": TOP_ROOMS,
    "hydra": TOP_ROOMS,
    "omegaconf": TOP_ROOMS,
    "tensorboard": TOP_ROOMS,
    "zmq": {"ppx"},
    "flatbuffers": {"ppx"},
    "arviz": {"inference"} | TOP_ROOMS,
    "matplotlib": {"inference"} | TOP_ROOMS,
    "pythia8mc": {"simulators"},
    "rich": {"inference"} | TOP_ROOMS,
    "mpi4py": {"storage", "inference", "strategies"},
}


class Import(NamedTuple):
    """One import statement: where it stands and the dotted name it asks for."""

    where: str
    target: str


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, source: str | None = None) -> Iterator[Import]:
    """Yield the absolute target of every import in a file, relative ones resolved."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(source if source is not None else path.read_text(encoding="utf-8"))):
        where = f"{path.relative_to(SOURCE)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from (Import(where, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *(node.module or "").split(".")]).rstrip(".")
            # `from etalumis import networks` asks for a room, `from etalumis.networks import x` names one.
            yield from (Import(where, f"{base}.{a.name}" if base == "etalumis" else base) for a in node.names)


def room_of(path: Path) -> str:
    """Return the first folder or module below the package; empty for the package's own __init__."""
    first = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def violations(path: Path, source: str | None = None) -> list[str]:
    """Return what a file imports against the order of the rooms."""
    room = room_of(path)
    found = []
    for where, target in imports(path, source):
        parts = target.split(".")
        if parts[0] != "etalumis":
            if room not in ALLOWED_IN.get(parts[0], {room}):
                found.append(f"{where}: {room or 'etalumis'} must not import {parts[0]}")
        elif room:  # the package's __init__ offers names of all rooms, lazily
            asked = parts[1] if len(parts) > 1 else ""
            if asked not in RANK:
                found.append(f"{where}: import from the room that defines it, not from etalumis itself")
            elif RANK[asked] > RANK[room]:
                found.append(f"{where}: {room} must not import {asked}, which comes later in the order")
    return found


def rooms() -> list[str]:
    entries = (path for path in SOURCE.iterdir() if path.suffix == ".py" or path.is_dir())
    names = {path.stem for path in entries} - {"__init__", "__main__", "__pycache__"}
    return sorted(names, key=lambda name: (RANK.get(name, -1), name))


def python_files(room: str) -> list[Path]:
    single = SOURCE / f"{room}.py"
    return [single] if single.exists() else sorted((SOURCE / room).rglob("*.py"))


def run_python(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_room_has_a_place_in_the_order() -> None:
    unknown = [room for room in rooms() if room not in RANK]
    assert not unknown, f"rooms without a place in the order: {unknown}; give each one in this file"
    assert set(RANK) == set(rooms()), "the order names a room that does not exist"


def test_the_design_lists_the_rooms_that_there_are() -> None:
    table = (Path(__file__).parents[1] / "docs" / "design.md").read_text(encoding="utf-8").split("## The rooms")[1]
    rows = [line.split("|")[1] for line in table.split("\n## ")[0].splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(rooms())
    assert listed[: len(CORE_ROOMS)] == list(CORE_ROOMS)


@pytest.mark.parametrize("room", rooms())
def test_room_imports_only_earlier_rooms(room: str) -> None:
    found = [line for path in python_files(room) for line in violations(path)]
    assert not found, "\n".join(found)


def test_package_itself_imports_nothing_heavy() -> None:
    assert violations(SOURCE / "__init__.py") == []


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("execution/loop.py", "from ..distributions import Normal", False),
        ("execution/loop.py", "from .trace import Trace", False),
        ("execution/loop.py", "from ..inference import Posterior", True),
        ("execution/loop.py", "def f():\n    from etalumis.networks.core import Core", True),
        ("execution/loop.py", "from etalumis import sample", True),
        ("execution/loop.py", "import etalumis as et", True),
        ("execution/__init__.py", "from .loop import run", False),
        ("execution/__init__.py", "from ..ppx import serve", True),
        ("simulators/tau.py", "import torch.nn", True),
        ("networks/core.py", "import torch.nn", False),
        ("networks/core.py", "from pytorch_lightning import LightningModule", True),
        ("inference/ic.py", "def f():\n    from etalumis.networks import load_checkpoint", False),
        ("inference/refinement.py", "from etalumis.optim import RowAdam", False),
        ("optim/rows.py", "from pytorch_lightning import LightningModule", True),
        ("callbacks/rates.py", "from ..lit_models.compilation import Compilation", False),
        ("cli.py", "import hydra", False),
        ("__init__.py", "import torch", True),
    ],
)
def test_the_check_tells_right_from_wrong(path: str, source: str, wrong: bool) -> None:
    assert bool(violations(SOURCE / path, source)) is wrong


def test_import_etalumis_pulls_nothing_heavy_and_is_quick() -> None:
    heavy = "torch scipy pytorch_lightning lightning hydra omegaconf zmq webdataset arviz matplotlib".split()
    program = (
        "import sys, time; start = time.process_time(); import etalumis; cost = time.process_time() - start\n"
        "print(cost, *(name for name in sys.argv[1:] if name in sys.modules))"
    )
    costs = []
    for _ in range(5):
        cost, *loaded = run_python(program, *heavy).split()
        assert not loaded, f"import etalumis pulls in {loaded}"
        costs.append(float(cost))
    # Processor time, so that other tests on the same cores don't count; the best of five.
    assert min(costs) < 0.35, f"import etalumis costs {min(costs):.2f} s"


def test_inference_needs_no_lightning_hydra_zmq_or_matplotlib() -> None:
    missing = "pytorch_lightning lightning hydra omegaconf zmq matplotlib arviz".split()
    program = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:]))  # None: import raises ImportError\n"
        "import etalumis.inference\n"
        "print('torch' in sys.modules)"
    )
    assert run_python(program, *missing).strip() == "False", "import etalumis.inference pulls in torch"


def test_modules_import_in_any_order() -> None:
    """A cycle of imports works in one order and fails in another: try several, from a clean slate each."""
    program = """
import importlib, random, sys
for seed in range(3):
    order = sorted(sys.argv[1:])
    random.Random(seed).shuffle(order)
    for name in [name for name in sys.modules if name.split(".")[0] == "etalumis"]:
        del sys.modules[name]
    for name in order:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise SystemExit(f"seed {seed}: {name}: {type(error).__name__}: {error}")
"""
    names = [module_name(path) for path in sorted(SOURCE.rglob("*.py")) if path.name != "__main__.py"]
    run_python(program, *names)
