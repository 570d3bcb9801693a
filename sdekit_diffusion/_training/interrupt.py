"""Ctrl-C, SIGTERM and SIGHUP. During a training run they are recorded, so that the run ends
between two updates; elsewhere they end a command with a message. The package imports this module
first, because Ctrl-C may come during the import of torch, which takes long.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

# Seconds within which a second signal counts as the same one: a terminal and a launcher may both
# send it.
_SAME_SIGNAL_SECONDS = 1.0


# SIGHUP, which Windows does not have, comes when a terminal is closed.
_HANDLED_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end.

    Attributes:
        number: the number of the signal.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number


def number_of(error: KeyboardInterrupt) -> int:
    """The number of the signal that raised an error: SIGINT unless it is an `Interrupted`."""
    return error.number if isinstance(error, Interrupted) else signal.SIGINT


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


@contextmanager
def raised() -> Iterator[None]:
    """A context in which SIGTERM and SIGHUP raise `Interrupted`, as SIGINT raises
    KeyboardInterrupt: only in the main thread, and only where they would end the process.
    """
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in _HANDLED_SIGNALS:
                if signal.getsignal(number) is signal.SIG_DFL:
                    before[number] = signal.signal(number, _raise)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def remember_signals() -> Iterator[Callable[[], int]]:
    """A context in which SIGINT, SIGTERM and SIGHUP are recorded; yields a function that returns
    the number of the signal that came, 0 where none did. A second signal, more than a second later,
    acts at once. A recorded signal acts at the end of the block.

    Only in the main thread, and only where Python's own handlers, or those of `raised`, are in
    place: other handlers stay.
    """
    signals: list[tuple[int, float]] = []
    handlers: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def remember(number: int, frame: FrameType | None) -> None:
        if signals and time.monotonic() - signals[0][1] > _SAME_SIGNAL_SECONDS:
            restore()
            signal.raise_signal(number)
        signals.append((number, time.monotonic()))

    try:
        if threading.current_thread() is threading.main_thread():
            for number in _HANDLED_SIGNALS:
                if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL, _raise):
                    handlers[number] = signal.signal(number, remember)
        yield lambda: signals[0][0] if signals else 0
    finally:
        restore()
    if signals:
        signal.raise_signal(signals[0][0])


def _is_the_program() -> bool:
    """Whether the process runs the command line: its script, or python -m sdekit_diffusion."""
    argv = getattr(sys, "argv", None) or [""]
    if argv[0] != "-m":
        return Path(argv[0]).stem == "sdekit-diffusion"
    # While python -m imports a package, "-m" stands for its name.
    name = "".join(sys.orig_argv[-len(argv) :][:1]).removeprefix("-m")
    return name in ("sdekit_diffusion", "sdekit_diffusion.__main__")


def _show_interrupts_in_one_line() -> None:
    """Sets sys.excepthook: one line for Ctrl-C, the previous hook for all other exceptions."""
    before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.stderr.write("error: interrupted; nothing is left running\n")
        else:
            before(kind, error, where)

    sys.excepthook = show


if _is_the_program():
    _show_interrupts_in_one_line()
