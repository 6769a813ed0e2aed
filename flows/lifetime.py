"""Ctrl-C and SIGTERM: unwind in order, and be gone within a bounded time whatever hangs on the way.

The work runs in a child process, and the process that the caller sees does nothing but wait for it. A process cannot
bound its own time: Python's handlers of signals and its threads stand still while native code holds the interpreter.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import psutil

UNWIND_SECONDS = 7.0
ORPHANS_SECONDS = 1.0  # for what the work has left behind, to end by itself
INTERRUPTED = 130
_KEPT = "; what is complete is kept, and the next run continues from it"
_PR_SET_CHILD_SUBREAPER = 36


def supervised(work: Callable[[], int]) -> int:
    """Call ``work`` in a child process; its exit code is that of this process, which never returns from here.

    The first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt in the child. If unwinding then takes longer than
    UNWIND_SECONDS, or on the second signal, every process of this run is killed. The exit code is 130. Artifacts stay
    whole in either case: they appear by one last atomic step. A SIGHUP that is ignored, as by nohup, stays ignored.
    """
    _open_missing_streams()
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signals.remove(signal.SIGHUP)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, no exit code can be read
    held, holding = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until both processes have their handlers
    child = os.fork()
    if child:
        os.close(held)
        os._exit(_wait(child, signals))
    os.close(holding)
    threading.Thread(target=_end_with_parent, args=(held,), daemon=True).start()
    return _interruptible(work, signals)


def _interruptible(work: Callable[[], int], signals: set[signal.Signals]) -> int:
    interrupted = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, interrupt)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        return work()
    except BaseException:  # also what the handlers of Ray and Prefect raise after a SIGTERM
        if not interrupted:
            raise
        return INTERRUPTED


def _end_with_parent(held: int) -> None:
    os.read(held, 1)  # nothing is written: it ends when the parent has
    os._exit(INTERRUPTED)


def _wait(child: int, signals: set[signal.Signals]) -> int:
    """The exit code of the child."""
    interrupted = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            _kill_everything()
        interrupted = True
        signal.setitimer(signal.ITIMER_REAL, UNWIND_SECONDS)
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(child, signal.SIGINT)

    if sys.platform == "linux":  # what a killed process leaves behind becomes a child of this one
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in signals:
        signal.signal(number, interrupt)
    signal.signal(signal.SIGALRM, lambda *_: _kill_everything())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*signals, signal.SIGALRM})
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    _kill_children(ORPHANS_SECONDS)
    if code == INTERRUPTED or (interrupted and code):
        return _end("interrupted", INTERRUPTED)
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    cause = "most likely the machine had no memory left for it" if name == "SIGKILL" else "in native code"
    return _end(f"ended by {name}, {cause}", 1)


def _kill_everything() -> None:
    _kill_children(0)
    os._exit(_end("interrupted", INTERRUPTED))


def _kill_children(patience: float) -> None:
    """Kill the processes below this one that do not end by themselves within ``patience`` seconds."""
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=patience)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=1)


def _end(line: str, code: int) -> int:
    with suppress(OSError):  # the terminal may be gone
        print(f"bitlm: {line}{_KEPT}", file=sys.stderr, flush=True)
    return code


def _open_missing_streams() -> None:
    """A closed standard stream would be taken by the next file that is opened, and what it holds by a child process."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
