"""``python -m flows.pipeline``: the same as ``bitlm run``."""

import sys

from flows.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
