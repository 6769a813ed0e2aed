"""Ctrl-C ends a run within a bounded time, whatever its process does, and takes its child processes along."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import pytest

SCRIPT = textwrap.dedent("""
    import collections, itertools, os, signal, subprocess, sys, time
    from bitlm_flows import lifetime

    def work():
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        try:
            print(os.getpid(), child.pid, flush=True)
            sys.stdin.readline()
            {work}
        finally:
            print("unwinding", flush=True)
            {unwind}
            child.kill()
        return {code}

    lifetime.UNWIND_SECONDS = {seconds}
    sys.exit(lifetime.supervised(work))
""")
SLEEP = "time.sleep(600)"
HOLDS_THE_INTERPRETER = "collections.deque(itertools.repeat(0), maxlen=0)"  # in C, for ever, deaf to signals
KEPT = "; what is complete is kept, and the next run continues from it\n"
LINE = f"bitlm: interrupted{KEPT}"
AS_FROM_A_TERMINAL = "import signal\nfor sent in (signal.SIGINT, signal.SIGHUP): signal.signal(sent, signal.SIG_DFL)\n"
Started = tuple[subprocess.Popen, list[psutil.Process]]


@pytest.fixture
def start() -> Iterator[Callable[..., Started]]:
    """Runs the script; (its process, the process of the work and a child of that). All are gone after the test."""
    everything = []

    def run(
        work: str = SLEEP,
        unwind: str = "pass",
        code: int = 0,
        seconds: float = 500.0,
        before: str = AS_FROM_A_TERMINAL,
        **options,
    ) -> Started:
        source = before + SCRIPT.format(work=work, unwind=unwind, code=code, seconds=seconds)
        options = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE) | {"text": True} | options
        process = subprocess.Popen([sys.executable, "-c", source], start_new_session=True, **options)
        everything.append(process)
        inner = _processes(process.stdout.readline())
        everything.extend(inner)
        if process.stdin is not None:
            process.stdin.write("\n")
            process.stdin.flush()
        return process, inner

    yield run
    for process in everything:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _processes(pids: str) -> list[psutil.Process]:
    """Those that have not ended."""
    found = []
    for pid in map(int, pids.split()):
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def gone(processes: list[psutil.Process]) -> bool:
    for _ in range(200):
        if not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("to", ["process", "work", "group"])
def test_the_first_signal_unwinds_in_order(start: Callable[..., Started], sent: signal.Signals, to: str) -> None:
    run, (work, child) = start()
    {"process": run.send_signal, "work": work.send_signal, "group": lambda s: os.killpg(run.pid, s)}[to](sent)
    out, err = run.communicate(timeout=30)
    assert (run.returncode, out, err) == (130, "unwinding\n", LINE)
    assert gone([work, child])


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("options", "unwinding"),
    [({"work": HOLDS_THE_INTERPRETER}, ""), ({"unwind": SLEEP}, "unwinding\n")],
    ids=["the work holds the interpreter", "unwinding hangs"],
)
def test_what_hangs_is_killed(
    start: Callable[..., Started], options: dict[str, str], unwinding: str, sent: signal.Signals
) -> None:
    run, inner = start(**options, seconds=1.0)
    while "work" in options and inner[0].cpu_times().user < 0.3:
        time.sleep(0.02)  # until it is in there
    began = time.monotonic()
    run.send_signal(sent)
    out, err = run.communicate(timeout=30)
    assert (run.returncode, out, err) == (130, unwinding, LINE)
    assert time.monotonic() - began >= 1.0
    assert gone(inner)


def test_a_second_signal_does_not_wait(start: Callable[..., Started]) -> None:
    run, inner = start(unwind=SLEEP)
    run.send_signal(signal.SIGINT)
    assert run.stdout.readline() == "unwinding\n"
    run.send_signal(signal.SIGTERM)
    assert run.communicate(timeout=30) == ("", LINE)
    assert run.returncode == 130
    assert gone(inner)


def test_signals_that_are_ignored_at_the_start(start: Callable[..., Started]) -> None:
    """A script starts its background jobs with SIGINT ignored, nohup with SIGHUP; only the latter is asked for."""
    ignore = "from signal import *\nfor sent in (SIGINT, SIGHUP, SIGCHLD): signal(sent, SIG_IGN)"
    run, inner = start(before=ignore, work="time.sleep(0.5); sys.exit(7)")
    os.killpg(run.pid, signal.SIGHUP)
    assert run.communicate(timeout=30) == ("unwinding\n", "")
    assert run.returncode == 7
    run, inner = start(before=ignore)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=30) == 130
    assert gone(inner)


def test_it_ends_where_its_waiting_process_was_killed(start: Callable[..., Started]) -> None:
    run, (work, _) = start()
    run.kill()
    assert gone([work])


@pytest.mark.parametrize(("work", "code"), [("pass", 0), ("sys.exit(3)", 3), ("raise ValueError('x')", 1)])
def test_the_exit_code_is_that_of_the_work(start: Callable[..., Started], work: str, code: int) -> None:
    run, _ = start(work=work)
    _, err = run.communicate(timeout=30)
    assert run.returncode == code
    assert err.endswith("ValueError: x\n") if "ValueError" in work else not err


@pytest.mark.parametrize(
    ("name", "cause"), [("SIGKILL", "most likely the machine had no memory left for it"), ("SIGSEGV", "in native code")]
)
def test_a_process_that_was_killed_is_one_line(start: Callable[..., Started], name: str, cause: str) -> None:
    run, (_, child) = start(work=f"os.kill(os.getpid(), signal.{name})")
    _, err = run.communicate(timeout=30)
    assert gone([child])
    assert run.returncode == 1
    assert err == f"bitlm: ended by {name}, {cause}{KEPT}"


def test_closed_standard_streams_are_taken_by_nothing_else(start: Callable[..., Started]) -> None:
    check = "assert all(os.fstat(fd).st_rdev == os.stat(os.devnull).st_rdev for fd in (0, 2)), 'taken'"
    run, _ = start(work=check, stdin=None, preexec_fn=lambda: (os.close(0), os.close(2)))
    run.communicate(timeout=30)
    assert run.returncode == 0
