"""``python -m bitlm_flows.pipeline``: the same as ``bitlm run``."""

import sys

from bitlm_flows.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    sys.exit(main())
