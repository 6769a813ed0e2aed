"""The stages on Ray and their Prefect tasks, installed as ``bitlm_tasks``."""

from pathlib import Path

import bitlm

# The modules beside the library that is imported, as in ``bitlm_flows``.
if (_tree := Path(bitlm.__file__).parents[1]) != Path(__file__).parents[1]:
    __path__ = [str(_tree / "tasks")]
