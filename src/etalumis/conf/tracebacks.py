"""Whether errors are shown with where they came from."""

from __future__ import annotations

import os
from collections.abc import Sequence

TRACEBACK = "debug=true"


def wants_traceback(words: Sequence[str]) -> bool:
    """Whether the user asked to see where an error came from, in the words of a command or in the environment."""
    return os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0") or TRACEBACK in words
