"""Artifacts: immutable folders ``{root}/{stage}/{name}@v{N}/``, each with the record of what it was computed from."""

from bitlm.artifacts.lineage import FieldChange, diff, explain, lineage, tree
from bitlm.artifacts.record import Draft, FileEntry, InputEntry, Record, fingerprint
from bitlm.artifacts.store import Store
from bitlm.artifacts.work import Work

__all__ = [
    "Draft",
    "FieldChange",
    "FileEntry",
    "InputEntry",
    "Record",
    "Store",
    "Work",
    "diff",
    "explain",
    "fingerprint",
    "lineage",
    "tree",
]
