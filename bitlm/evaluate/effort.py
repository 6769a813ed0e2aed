"""What each trained system has cost: steps, tokens seen by the backbone and seconds of all trainings that led to it,
and its parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

from bitlm.artifacts.record import Record


def chain(record: Record, by_id: Mapping[str, Record]) -> list[Record]:
    """The trainings that led to a pretrain or finetune record, the first one first, itself last."""
    parents = [by_id[record.inputs[role].id] for role in ("init", "pretrain") if role in record.inputs]
    return [one for parent in parents for one in chain(parent, by_id)] + [record]


def of_trainings(trained: Sequence[Record], by_id: Mapping[str, Record]) -> list[dict[str, Any]]:
    """For each record of ``trained`` (see ``chain``): ``steps`` of each training in its chain, the sums of ``tokens``
    and ``seconds``, ``shared_seconds`` of trainings that another head's chain holds too, ``tokens_per_second`` of the
    last one, and ``parameters``. ``by_id`` holds the ancestors."""
    chains = {record.id: chain(record, by_id) for record in trained}
    heads: dict[str, set[str]] = {}  # training → the heads that are built on it
    for record in trained:
        for one in chains[record.id]:
            heads.setdefault(one.id, set()).add(record.identity["head"])
    return [
        {
            "artifact": record.id,
            "stage": record.stage,
            "head": record.identity["head"],
            "steps": [one.metrics["steps"] for one in chains[record.id]],
            "tokens": sum(one.metrics["tokens"] for one in chains[record.id]),
            "seconds": sum(one.metrics["train_seconds"] for one in chains[record.id]),
            "shared_seconds": sum(one.metrics["train_seconds"] for one in chains[record.id] if len(heads[one.id]) > 1),
            "tokens_per_second": record.metrics["tokens_per_second"],
            "parameters": record.metrics["parameters"],
            "ready_checkpoint": any("init" in one.identity for one in chains[record.id]),
        }
        for record in trained
    ]


def notes(efforts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on what keeps the heads from being compared at the same tokens."""
    found = []
    pretrained = [effort for effort in efforts if effort["stage"] == "pretrain"]  # fine-tuning fills blocks
    if len({effort["tokens"] for effort in pretrained}) > 1:
        counts = ", ".join(f"{effort['artifact']} {effort['tokens']:,}" for effort in pretrained)
        found.append(f"The heads have not seen equally many tokens: {counts}.")
    if any(effort["ready_checkpoint"] for effort in efforts):
        found.append("Tokens and seconds do not count what the ready checkpoint was trained on.")
    return found
