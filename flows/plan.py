"""What a run would do, without doing any of it."""

from dataclasses import dataclass
from typing import Any

from bitlm.artifacts.lineage import explain
from bitlm.artifacts.store import Store
from bitlm.steps import Step


@dataclass(frozen=True)
class Planned:
    step: str
    fingerprint: str
    reuse: str | None
    reasons: list[str]
    inputs: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "action": "reuse" if self.reuse else "make",
            "artifact": self.reuse,
            "fingerprint": self.fingerprint,
            "reasons": self.reasons,
            "inputs": self.inputs,
        }


def plan(chosen: list[Step], root: str) -> list[Planned]:
    """For each step: the artifact that would be reused, or why a new version would be made."""
    store = Store(root)
    planned = []
    for step in chosen:
        found = store.find(step.stage, step.name, step.fingerprint)
        reasons = [] if found else explain(store.newest(step.stage, step.name), step)
        inputs = {role: made.key if isinstance(made, Step) else made.id for role, made in step.inputs.items()}
        planned.append(Planned(step.key, step.fingerprint, found.id if found else None, reasons, inputs))
    return planned
