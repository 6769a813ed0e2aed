"""The tokens stage with processes that kill themselves where a plan says so.

A plan is a folder. Each file in it is a death that is still to come: ``U-N`` is the N-th of unit U, ``driver-N`` that
of the driver when N units are done. A fork server imports this module once, so that a process costs no import.
"""

import os
import random
import signal
import sys
from pathlib import Path

import ray
from ray import cloudpickle

from bitlm.data.shards import encode
from bitlm.data.shards.encode import UnitResult
from bitlm.data.shards.units import Job, Unit
from bitlm_tasks import tokens
from tests.tasks.data_stages import run_stages

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import the stages


def encode_or_die(unit: Unit, job: Job, plan: Path) -> UnitResult:
    """Where a death of the unit is due: dies before or after one of its files appears, or at its end."""
    death = next((name for name in (f"{unit.index}-0", f"{unit.index}-1") if _due(plan, name)), None)
    if death is None:
        return encode.encode_unit(unit, job)
    moment, calls, real = random.Random(death).randrange(8), 0, os.replace

    def replace(*names: str) -> None:
        nonlocal calls
        if calls == moment:
            _die()
        real(*names)
        calls += 2
        if calls == moment + 1:
            _die()

    os.replace = replace
    try:
        encode.encode_unit(unit, job)
        _die()
    finally:
        os.replace = real


def drive(address: str, root: Path, plan: Path, settings: list[str], last: str) -> None:
    """The stages up to ``last`` on the cluster at ``address``."""

    def fragile(unit: Unit, job: Job) -> UnitResult:
        return encode_or_die(unit, job, plan)

    class Meter(tokens.Meter):
        def add(self, result: UnitResult) -> None:
            super().add(result)
            if _due(plan, f"driver-{self._done['units']}"):
                _die()

    os.environ["RAY_ADDRESS"] = address
    tokens.encode_unit = ray.remote(max_retries=tokens.RETRIES)(fragile)
    tokens.Meter = Meter
    run_stages(root, *settings, last=last)
    ray.shutdown()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _due(plan: Path, name: str) -> bool:
    try:
        (plan / name).unlink()
    except FileNotFoundError:
        return False
    return True
