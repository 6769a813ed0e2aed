"""``python -m tests.golden``: record the figures anew, and say which changed by how much."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cases import RECORDED, compute, difference, load

if __name__ == "__main__":
    found = json.loads(json.dumps(compute()))
    changes = list(difference(load(), found)) if RECORDED.exists() else ["recorded for the first time"]
    RECORDED.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(changes) or "nothing changed")
