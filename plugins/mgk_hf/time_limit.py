"""Running other people's programs (chat templates) for a limited time."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_LAST = 1.0
"""Seconds that a thread has to end after it was asked to."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return what ``work`` returns, or raise what it raises.

    A thread and not a signal, since signals reach the main thread alone and may be somebody else's.

    :raises TimeoutError: it did not end in time; an exception was raised inside it to stop it
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        ident = ctypes.c_ulong(thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))
        thread.join(_LAST)
        raise TimeoutError(f"it did not end within {seconds:g} s")
    if errors:
        raise errors[0]
    return results[0]
