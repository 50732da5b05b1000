"""Print constraints.txt: the exact version of everything that etalumis and its extras pull in.

Run by `make constraints` after the newest versions have been installed and tested. A package that dropped
Python 3.10 is pinned for later Pythons only; on 3.10 pip takes its newest version that still supports it.
"""

from importlib.metadata import distribution

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

EXTRAS = {"dev", "mpi", "pythia", "report"}
HEADER = """\
# The versions that continuous integration tests with; written by `make constraints` (scripts/pin.py).
# torch is pinned without a build tag: scripts/setup.sh picks the CPU build.
"""


def closure(root: str, extras: set[str]) -> dict[str, str]:
    """Return ``{package: constraint line}`` for all that ``root[extras]`` needs in this environment."""
    visited: dict[str, set[str]] = {}
    todo = [(root, extras)]
    while todo:
        name, wanted = todo.pop()
        new = (wanted | {""}) - visited.setdefault(name, set())
        visited[name] |= new
        for line in (distribution(name).requires or []) if new else []:
            requirement = Requirement(line)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in new):
                todo.append((canonicalize_name(requirement.name), requirement.extras))
    return {name: pin(name) for name in sorted(visited) if name != root}


def pin(name: str) -> str:
    """Return one constraint line, without a local build tag such as ``+cpu``."""
    found = distribution(name)
    requires = SpecifierSet(found.metadata["Requires-Python"] or "")
    marker = "" if requires.contains("3.10.99") else ' ; python_version >= "3.11"'
    return f"{name}=={found.version.split('+')[0]}{marker}"


if __name__ == "__main__":
    print(HEADER + "\n".join(closure("etalumis", EXTRAS).values()))
