"""Prefect flows and the command line, installed as ``bitlm_flows``.

Prefect and Ray read the variables below when they are first imported, so they are set here, before any module of this
package imports them; a variable that is set already stays. They keep Prefect, Ray and the Hub from sending statistics,
and their log lines from the terminal (the command line prints errors itself). Requests to this machine go by no proxy.
"""

import os
import sys

# A yaml.py or a folder bitlm where ``python -m`` is called would hide what is installed; where ``bitlm`` is, none does.
if sys.argv[0] == "-m" and not sys.flags.safe_path:
    del sys.path[0]

import warnings
from pathlib import Path

import bitlm

# The modules beside the library that is imported. A Ray job with --working-dir imports the library from that folder,
# and without this it would import the flows of the installation.
if (_tree := Path(bitlm.__file__).parents[1]) != Path(__file__).parents[1]:
    __path__ = [str(_tree / "flows")]

for _name, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads of a training step that spin while they wait cost a small model a factor of two to ten on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # The Hub's client reports each repetition of a request; our own line says what failed in the end.
    "HF_HUB_VERBOSITY": "error",
}.items():
    os.environ.setdefault(_name, _value)

_unproxied = [host for host in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")).split(",") if host]
_unproxied += [host for host in ("127.0.0.1", "localhost", "::1") if host not in _unproxied]
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(_unproxied)

# Prefect says so of a home that it cannot make, though a client needs none.
warnings.filterwarnings("ignore", "Failed to create the Prefect home directory")
