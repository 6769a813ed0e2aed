"""What the ablation prints of its rows."""

from collections.abc import Mapping, Sequence
from typing import Any

PATHS = {"joint": 0.0, "stagger 0.5": 0.5, "one after the other": 1.0}
"""Paths of noise levels along which the bound is taken, by their stagger."""


def print_row(result: Mapping[str, Any]) -> None:
    points = ", ".join(f"{p['validation_nats_per_token']:.3f} after {p['step']} steps" for p in result["points"])
    print(f"{result['row']}: {result['training_seconds']:.0f} s; nats per token {points}", flush=True)


def print_table(results: Sequence[Mapping[str, Any]]) -> None:
    """Markdown. The last point is taken again: the chain, and the bound with more noise levels along three paths."""
    earlier = max(len(result["points"]) for result in results) - 1
    points = (f"point {i + 1}" for i in range(earlier))
    head = ["row", "params M", "steps", "s/step", *points, "end: chain, or exact", "slots", *PATHS]
    print(
        "Nats per token of held-out text ± standard error: of the LM head exact, of the diffusion head the code length "
        "of one-by-one sampling, and upper bounds along paths of noise levels."
    )
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for result in results:
        print(f"| {' | '.join(_cells(result, earlier))} |")


def _cells(result: Mapping[str, Any], earlier: int) -> list[str]:
    points = [f"{p['validation_nats_per_token']:.3f} (step {p['step']})" for p in result["points"][:-1]]
    nats = result["nats"]
    end = nats.get("chain") or nats["exact"]
    return [
        result["row"],
        f"{result['parameters']['total'] / 1e6:.2f}",
        f"{result['steps']}",
        f"{result['seconds_per_step']:.3f}",
        *points,
        *["–"] * (earlier - len(points)),
        f"**{end['mean']:.3f}** ± {end['stderr']:.3f}",
        " ".join(f"{slot:.2f}" for slot in end["slots"]),
        *(f"{nats[path]['mean']:.3f}" if path in nats else "–" for path in PATHS),
    ]
