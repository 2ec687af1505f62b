"""Ending a long run in good order: at Ctrl-C, or when the system asks for it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Protocol

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(Exception):
    """Training was asked to stop, and its state has been saved."""


class Flag(Protocol):
    """An event of this process or of several."""

    def is_set(self) -> bool: ...


class Stop:
    """Whether training is to end after the present step."""

    def __init__(self, asked: Flag | None = None) -> None:
        self._event = threading.Event()
        self._asked = asked or self._event
        self.signal = signal.SIGINT

    @property
    def requested(self) -> bool:
        return self._event.is_set() or self._asked.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for so long at most; whether a stop is requested."""
        # In short pieces: a signal's handler runs between them on every system.
        end = time.monotonic() + seconds
        while not self.requested and time.monotonic() < end:
            time.sleep(min(0.2, seconds))
        return self.requested

    def request(self) -> None:
        self._event.set()

    @property
    def exit_status(self) -> int:
        """What shells report of a process that the signal has ended."""
        return 128 + self.signal


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Have the first signal ask for a stop; a second one ends the process at once."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:
        stop.signal = signal.Signals(number)
        stop.request()
        signal.signal(number, signal.SIG_DFL)

    for number in SIGNALS:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
