"""SIGINT and SIGTERM: during training they wait for the end of the step, elsewhere they end the command where it stands.

Whatever is written is written whole or not at all, so that a command may end anywhere; only a step is worth waiting for.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

from limbeck.errors import Interrupted

SAID = "stopped; run it again to go on"


class Stop:
    """Whether a stop was asked for: call it."""

    def __init__(self) -> None:
        self.asked = False
        self.raises = False  # whether the first signal ends what goes on

    def __call__(self) -> bool:
        """Whether it was."""
        return self.asked

    def hear(self, number: int, frame: FrameType | None) -> None:
        """What a signal does.

        Raises:
            Interrupted: the first one, where nothing is worth waiting for.
            KeyboardInterrupt: the second one.
        """
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self.raises:
            raise Interrupted(SAID)
        print("stopping after this step; once more to stop at once", file=sys.stderr, flush=True)


_hearing: list[Stop] = []


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Hears SIGINT and SIGTERM: the first asks for a stop, a second one stops at once.

    Within another `interruptible` it is that one. Outside the main thread nothing is heard.
    """
    if _hearing or current_thread() is not main_thread():
        yield _hearing[0] if _hearing else Stop()
        return
    stop = Stop()
    _hearing.append(stop)
    old = {number: signal.signal(number, stop.hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        _hearing.clear()


@contextmanager
def at_once() -> Iterator[None]:
    """What may end anywhere: within, the first signal raises, and so does one that was heard before.

    Raises:
        Interrupted: a stop was asked for.
    """
    stop = _hearing[0] if _hearing else Stop()
    before, stop.raises = stop.raises, True
    try:
        if stop.asked:
            raise Interrupted(SAID)
        yield
    finally:
        stop.raises = before
