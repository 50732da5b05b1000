"""Native call stacks as addresses: where in compiled code a callback into Python was asked for.

A simulator compiled without any knowledge of this package still has addresses: the chain of its functions that
led to a random number. glibc's ``backtrace`` walks the stack, ``dladdr`` names each frame, and the result is
spelled outermost first, ``[outer()+0x204; inner(double)+0x3f]``, with offsets relative to the function, so that
it is the same in every run and on every machine with the same binary. Reached through ctypes: nothing to compile.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

_POINTER = ctypes.sizeof(ctypes.c_void_p)
_FIRST_DEPTH = 16
_DEEPEST = 1024


class _SymbolInfo(ctypes.Structure):
    """``Dl_info`` of dlfcn.h."""

    _fields_ = (
        ("file_name", ctypes.c_char_p),
        ("file_base", ctypes.c_void_p),
        ("symbol_name", ctypes.c_char_p),
        ("symbol_address", ctypes.c_void_p),
    )


class NativeStack:
    """Addresses of the calls that one compiled library makes back into Python. Used by one thread at a time.

    Only frames of the library count. Those of Python and ctypes around them are cut away, and so is the glue of
    the library's Python binding: innermost the functions that hand the call over to Python, outermost those
    (without a symbol of their own) through which Python had entered.

    Spelling an address costs tens of microseconds, but each stack is spelled once; from then on it is found by its
    return addresses, and the cost is that of the walk (3–5 µs, mostly through Python's own frames).

    Args:
        library: path of the shared object.
        glue: prefix of the demangled names of the binding's functions that call Python.

    Raises:
        RuntimeError: where the C library has no ``backtrace``.
    """

    def __init__(self, library: str, glue: str) -> None:
        # PyDLL: calls keep the interpreter lock, which makes them quick and their buffer safe.
        process = ctypes.PyDLL(None)
        try:
            self._walk = process.backtrace
        except AttributeError:
            message = "native addresses need a C library with backtrace(), such as glibc on Linux"
            raise RuntimeError(message) from None
        self._look_up = process.dladdr
        self._look_up.argtypes = (ctypes.c_void_p, ctypes.POINTER(_SymbolInfo))
        self._free = process.free
        self._free.argtypes = (ctypes.c_void_p,)
        self._free.restype = None
        # The library itself depends on the C++ runtime, which need not be visible from the process.
        self._demangle = ctypes.PyDLL(library)["__cxa_demangle"]
        self._demangle.restype = ctypes.c_void_p
        self._library = Path(library).name
        self._glue = glue
        self._buffer: Any = ctypes.create_string_buffer(_DEEPEST * _POINTER)
        self._depth = _FIRST_DEPTH
        self._addresses: dict[bytes, str] = {}

    def __len__(self) -> int:
        """How many different stacks have been spelled."""
        return len(self._addresses)

    def address(self) -> str:
        """The address of the innermost call from the library into Python on this thread's stack."""
        while True:
            # Only as many frames are walked as it takes to leave the library.
            stack: bytes = self._buffer[: _POINTER * self._walk(self._buffer, self._depth)]
            found = self._addresses.get(stack)
            if found is not None:
                return found
            spelled = self._spell(stack)
            if spelled is not None:
                self._addresses[stack] = spelled
                return spelled
            if self._depth == _DEEPEST:
                raise RuntimeError(f"no call from {self._library} into Python within {_DEEPEST} stack frames")
            self._depth += 1

    def _spell(self, stack: bytes) -> str | None:
        """The address of a stack of return addresses, None where it ends before it has left the library."""
        frames: list[tuple[str, int]] = []  # innermost first; without a symbol: ("", offset in the library)
        for counter in memoryview(stack).cast("P"):
            frame = self._frame(counter)
            if frame is not None:
                frames.append(frame)
            elif frames:
                break
        else:
            return None
        handed_over = [place for place, (symbol, _) in enumerate(frames) if symbol.startswith(self._glue)]
        if handed_over:
            frames = frames[handed_over[0] + 1 :]
        while frames and not frames[-1][0]:
            frames.pop()
        parts = [f"{symbol or self._library}+{offset:#x}" for symbol, offset in reversed(frames)]
        return f"[{'; '.join(parts)}]"

    def _frame(self, counter: int) -> tuple[str, int] | None:
        """Function and offset of a return address; None where it is not in the library."""
        info = _SymbolInfo()
        # The call stands before its return address, which may already belong to the next function.
        known = self._look_up(counter - 1, ctypes.byref(info))
        if not known or Path(info.file_name.decode()).name != self._library:
            return None
        if info.symbol_name is None:
            return "", counter - info.file_base
        return self._demangled(info.symbol_name), counter - info.symbol_address

    def _demangled(self, symbol: bytes) -> str:
        status = ctypes.c_int()
        text = self._demangle(symbol, None, None, ctypes.byref(status))
        if not text:
            return symbol.decode()
        try:
            return ctypes.string_at(text).decode()
        finally:
            self._free(text)
