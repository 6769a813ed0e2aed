"""Ctrl-C ends a run within a bounded time even where its unwinding hangs, and takes its child processes along."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

HANGS = textwrap.dedent("""
    import subprocess, sys, time
    from bitlm_flows import lifetime
    lifetime.UNWIND_SECONDS = 1.0
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    with lifetime.bounded_interrupt():
        try:
            print(child.pid, flush=True)
            time.sleep(600)
        finally:
            print("unwinding", flush=True)
            time.sleep({hang})
            child.kill()
""")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_hanging_unwind_is_cut_short(sent):
    run = subprocess.Popen([sys.executable, "-c", HANGS.format(hang=600)], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(run.stdout.readline()))
    began = time.monotonic()
    run.send_signal(sent)
    assert run.stdout.readline() == "unwinding\n"
    assert run.wait(timeout=30) == 130
    assert time.monotonic() - began >= 1.0
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_second_signal_does_not_wait():
    run = subprocess.Popen(
        [sys.executable, "-c", HANGS.format(hang=600).replace("= 1.0", "= 500.0")], stdout=subprocess.PIPE, text=True
    )
    run.stdout.readline()
    os.kill(run.pid, signal.SIGINT)
    assert run.stdout.readline() == "unwinding\n"
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(timeout=30) == 130


def test_an_orderly_unwind_runs_to_its_end():
    run = subprocess.Popen(
        [sys.executable, "-c", HANGS.format(hang=0)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    child = psutil.Process(int(run.stdout.readline()))
    run.send_signal(signal.SIGINT)
    _, stderr = run.communicate(timeout=30)
    assert "KeyboardInterrupt" in stderr
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
