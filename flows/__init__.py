"""Prefect flows and the command line.

The variables below are read when Prefect and Ray are first imported, so they are set before any module here does that.
Each can be overridden from outside: nothing is sent to third parties, and the terminal shows our lines
rather than theirs (the command line prints a fault itself, so Prefect's copy of its traceback is left out).
"""

import os

for _name, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads of a training step that spin while they wait cost a small model a factor of two to ten on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}.items():
    os.environ.setdefault(_name, _value)
