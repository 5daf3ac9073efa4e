"""Stopping in time: signals, and a time that is up, turned into one question."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
"""Ctrl-C, the system's notice, a job scheduler's notice before its limit, and a terminal that has gone."""


class StopFlag:
    """Turns signals, and a time that is up, into a question; a second SIGINT stops at once."""

    def __init__(
        self,
        notify: Callable[[str], None] = lambda _: None,
        minutes: float | None = None,
    ) -> None:
        """:param notify: called once with ``time`` or ``signal``, possibly inside a signal handler: it must not touch buffered streams
        :param minutes: time from now after which the answer becomes yes without a signal
        """
        self.signal: int | None = None
        self.notify = notify
        self._until = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._notified = False

    def __call__(self) -> bool:
        """Whether to stop: a signal came, or the time is up."""
        if self.signal is None and time.monotonic() < self._until:
            return False
        self._notify_once("time" if self.signal is None else "signal")
        return True

    def _notify_once(self, why: str) -> None:
        if not self._notified:
            self._notified = True
            self.notify(why)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        self._notify_once("signal")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Install the handlers inside the block (main thread only: elsewhere signals are not ours).

        A hang-up that is ignored already, as under ``nohup``, stays so.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}
        for number in (
            int(getattr(signal, name)) for name in SIGNALS if hasattr(signal, name)
        ):
            if (
                number != getattr(signal, "SIGHUP", None)
                or signal.getsignal(number) != signal.SIG_IGN
            ):
                before[number] = signal.signal(number, self._handle)
        try:
            yield
        finally:
            for known, handler in before.items():
                signal.signal(known, handler)
