"""Ctrl-C and SIGTERM: unwind in order, and be gone within a bounded time whatever hangs on the way."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

UNWIND_SECONDS = 7.0
INTERRUPTED = 130


@contextmanager
def bounded_interrupt() -> Iterator[None]:
    """The first SIGINT or SIGTERM raises KeyboardInterrupt.

    If unwinding then takes longer than UNWIND_SECONDS, or on the second signal, every process of this run is killed and
    the exit code is 130. Artifacts stay whole in either case: they appear by one last atomic step.
    """
    interrupted = threading.Event()

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        if interrupted.is_set():
            _kill_everything()
        interrupted.set()
        timer = threading.Timer(UNWIND_SECONDS, _kill_everything)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if not interrupted.is_set():
            for number, handler in before.items():
                signal.signal(number, handler)


def _kill_everything() -> None:
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    os._exit(INTERRUPTED)
