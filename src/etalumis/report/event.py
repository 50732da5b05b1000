"""One event on disk: what was observed, and, where it was simulated, what was true.

An event is an ``.npz`` file of plain arrays (no pickles): one per observation under its name, true values under
``truth/NAME``, and names of categories under ``labels/NAME``. An observation whose name comes several times in an
execution stands under ``each/NAME``, one row a time. Engines read the observations, reports the rest.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_TRUTH, _LABELS, _EACH = "truth/", "labels/", "each/"


@dataclass(frozen=True)
class Event:
    """An observation to infer from.

    Attributes:
        observe: observed values by name, as engines take them: a list where a name comes several times.
        truth: true values of draws and tags by name; empty for real data.
        labels: for categorical variables, what each value is called.
    """

    observe: Mapping[str, NDArray[np.float64] | list[NDArray[np.float64]]]
    truth: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the file, complete or not at all.

        Raises:
            ValueError: another suffix than ``.npz``, by which readers know the kind of file.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"an event is an .npz file, and {path} would not be read as one; name it {path.stem}.npz")
        arrays: dict[str, NDArray] = {
            (_EACH if isinstance(value, list) else "") + name: np.asarray(value) for name, value in self.observe.items()
        }
        arrays |= {_TRUTH + name: np.asarray(value, dtype=np.float64) for name, value in self.truth.items()}
        arrays |= {_LABELS + name: np.asarray(names, dtype=np.str_) for name, names in self.labels.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.part")
        # Member by member: numpy.savez takes no name for an array that is also an argument of its own.
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Event:
        """Read the file.

        Raises:
            ValueError: there is no such file, or it is not an ``.npz`` file of plain arrays.
        """
        observe: dict[str, NDArray | list[NDArray]] = {}
        truth: dict[str, float] = {}
        labels: dict[str, tuple[str, ...]] = {}
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for key in arrays.files:
                    if key.startswith(_TRUTH):
                        truth[key.removeprefix(_TRUTH)] = float(arrays[key])
                    elif key.startswith(_LABELS):
                        labels[key.removeprefix(_LABELS)] = tuple(arrays[key].tolist())
                    elif key.startswith(_EACH):
                        observe[key.removeprefix(_EACH)] = list(arrays[key])
                    else:
                        observe[key] = arrays[key]
        except FileNotFoundError as error:
            raise ValueError(f"there is no event file {path}; write one with numpy.savez(path, NAME=values)") from error
        except (OSError, EOFError, TypeError, AttributeError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not an .npz file of plain arrays: {error}") from error
        return cls(observe, truth, labels)
