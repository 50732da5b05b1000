"""Where the simulator front ends are: ``python -m etalumis.ppx --cmakedir``."""

from __future__ import annotations

import argparse
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_PLACES = {
    "cmakedir": (_HERE / "cpp" / "cmake", "folder of etalumisConfig.cmake, for -Detalumis_DIR=…"),
    "includedir": (_HERE / "cpp" / "include", "folder of the C++ and C headers"),
    "schema": (_HERE / "schema.fbs", "the FlatBuffers schema of the protocol"),
}


def main() -> None:
    """Print the place asked for."""
    parser = argparse.ArgumentParser(prog="python -m etalumis.ppx", description=__doc__)
    choice = parser.add_mutually_exclusive_group(required=True)
    for name, (place, what) in _PLACES.items():
        choice.add_argument(f"--{name}", dest="place", action="store_const", const=place, help=what)
    print(parser.parse_args().place)


if __name__ == "__main__":
    main()
