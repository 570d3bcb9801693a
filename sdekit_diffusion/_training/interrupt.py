"""Ctrl-C and SIGTERM while a training run is at work: remembered, so that it ends between two
updates.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Seconds in which a signal that comes again is the same one: a terminal and a launcher both send
# it.
_SAME = 1.0


@contextmanager
def remembered() -> Iterator[Callable[[], bool]]:
    """For the time of a block SIGINT and SIGTERM are remembered; yields whether one came. Another
    one, later, acts at once. One that came and did not end the block acts after it.

    Only in the main thread, and only where Python's own handlers are in place: those of others
    stay.
    """
    came: list[tuple[int, float]] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def remember(number: int, frame: FrameType | None) -> None:
        if came and time.monotonic() - came[0][1] > _SAME:
            restore()
            signal.raise_signal(number)
        came.append((number, time.monotonic()))

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
                    before[number] = signal.signal(number, remember)
        yield lambda: bool(came)
    finally:
        restore()
    if came:
        signal.raise_signal(came[0][0])
