"""Whether errors are shown with where they came from."""

from __future__ import annotations

import os
from collections.abc import Sequence

TRACEBACK = "debug=true"
_OURS = ("etalumis", "__main__")
_FOR_USERS = (ValueError, RuntimeError, ArithmeticError, ImportError, OSError)


def shows_traceback(error: BaseException, words: Sequence[str]) -> bool:
    """Whether more than an error's text is to be shown: the user asked, or it is a bug."""
    return wants_traceback(words) or not is_for_users(error)


def wants_traceback(words: Sequence[str]) -> bool:
    """Whether the user asked to see where an error came from, in the words of a command or in the environment."""
    return os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0") or TRACEBACK in words


def is_for_users(error: BaseException) -> bool:
    """Whether an error was written for users, by our own code or by Hydra; all others are bugs and show where."""
    if type(error).__module__.partition(".")[0] in ("hydra", "omegaconf", "etalumis"):
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    raised_in = "" if last is None else str(last.tb_frame.f_globals.get("__name__", ""))
    return raised_in.partition(".")[0] in _OURS and isinstance(error, _FOR_USERS)
