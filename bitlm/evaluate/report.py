"""The report: one HTML page without any outside resource, and its tables as Markdown.

Both depend only on the results: the same artifacts give the same page, whenever it is made.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bitlm.artifacts.record import Record
from bitlm.evaluate import curves, table
from bitlm.evaluate.lineage_svg import lineage_svg
from bitlm.evaluate.measures import MEASURES
from bitlm.evaluate.results import Results, range_of
from bitlm.text import markdown

STYLES = {"diffusion": 0, "lm": 1}
GROUPS = (
    ("ours", "This pipeline"),
    ("article", "The article’s table (arXiv 2605.11577), XSum test set, for orientation only"),
)
EXAMPLES_NOTE = "Evenly spaced rows of the split, not chosen by hand; texts are shown as they were generated."
VALIDATION_CAPTION = "Nats per token on held-out text: an upper bound for the diffusion head, exact for the LM head."
LOSS_CAPTION = (
    "Training loss. The heads minimize different quantities: compare shapes, not heights. "
    f"Means of equal runs of steps where there are more than {curves.MOST_POINTS}."
)
FOOTER = "Made from the artifacts above alone: the same artifacts give the same page."


def render_markdown(results: Results) -> str:
    """The ROUGE and validation tables, for a README or a pull request."""
    rows = [table.Row.model_validate(row) for row in results["rows"]]
    parts = [
        f"# {markdown(results['title'])}",
        f"Preset `{results['preset']}`. ROUGE F1 ×100 [95% bootstrap interval], {results['implementation']}. "
        f"{results['newlines']}.",
        table.markdown(rows),
        table.CHOICES_NOTE,
        table.ARTICLE_NOTE,
        table.LEAD_NOTE,
    ]
    if results["validation"]:
        lines = [
            "| model | step | nats per token | per slot | bits per byte | kind |",
            "| --- | ---: | ---: | --- | ---: | --- |",
        ]
        lines += [_validation_line(line) for line in results["validation"]]
        parts += ["## Likelihood on held-out text", "\n".join(lines)]
    if results["notes"]:
        parts += ["## Notes", "\n".join(f"- {markdown(note)}" for note in results["notes"])]
    return "\n\n".join(parts) + "\n"


def _validation_line(line: Mapping[str, Any]) -> str:
    bits = "–" if line["bits_per_byte"] is None else f"{line['bits_per_byte']:.4f}"
    nats = f"{line['nats_per_token']:.4f}"
    return f"| {line['system']} | {line['step']:,} | {nats} | {slots(line)} | {bits} | {line['kind']} |"


def slots(line: Mapping[str, Any]) -> str:
    """Nats per token of each slot of a block; a dash for a head without blocks."""
    return "–" if line["slots"] is None else " ".join(f"{nats:.2f}" for nats in line["slots"])


def render_html(results: Results, ancestry: Sequence[Record], stages: Sequence[str]) -> str:
    """One self-contained page. Every text from outside is escaped. ``stages``: their names, in the pipeline's order."""
    environment = Environment(
        loader=PackageLoader("bitlm.evaluate", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = [table.Row.model_validate(row) for row in results["rows"]]
    shown = {
        "rows": rows,
        "measures": MEASURES,
        "groups": GROUPS,
        "article_note": table.ARTICLE_NOTE,
        "lead_note": table.LEAD_NOTE,
        "choices_note": table.CHOICES_NOTE,
        "slots": slots,
        "examples_note": EXAMPLES_NOTE,
        "footer": FOOTER,
        "byline": _byline(results, rows),
        "charts": _charts(results["curves"]),
        "lineage": lineage_svg(ancestry, stages),
        "configuration": [{"id": one["id"], "settings": flatten(one["identity"])} for one in results["artifacts"]],
        "versions": list(results["versions"].items()),
    }
    return environment.get_template("report.html.j2").render({**results, **shown})


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted keys and JSON values, in order."""
    settings = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            settings += flatten(value, f"{prefix}{key}.")
        else:
            settings.append((prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return settings


def _byline(results: Results, rows: Sequence[table.Row]) -> str:
    examples = range_of({row.examples for row in rows if row.examples})
    finished = max(artifact["finished"] for artifact in results["artifacts"])
    origin = f"last artifact of {finished} UTC · bitlm {results['versions']['bitlm']}"
    return f"Preset {results['preset']} · {examples} examples · {origin}"


def _charts(trainings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each stage: the validation of both heads in one chart, since both are nats per token, and the training
    losses, whose units differ, in a chart each."""
    charts = []
    for stage, words in (("pretrain", "Pretraining"), ("finetune", "Fine-tuning")):
        own = [curve for curve in trainings if curve["stage"] == stage]
        legend = [{"label": table.HEADS[curve["head"]], "style": STYLES[curve["head"]]} for curve in own]
        title = f"{words}: validation"
        both = [_series(curve, "validation_nats_per_token") for curve in own]
        validation = curves.line_chart(both, title=title, x_label="step", y_label="nats per token")
        if validation:
            charts.append({"title": title, "legend": legend, "panels": [validation], "caption": VALIDATION_CAPTION})
        title = f"{words}: training loss"
        losses = [_loss_chart(curve, title) for curve in own]
        if any(losses):
            charts.append({"title": title, "legend": legend, "panels": losses, "caption": LOSS_CAPTION})
    return charts


def _loss_chart(curve: Mapping[str, Any], title: str) -> str:
    unit = "nats per token" if curve["head"] == "lm" else "loss (as configured)"
    title = f"{title} of the {table.HEADS[curve['head']]}"
    return curves.line_chart([_series(curve, "loss")], title=title, x_label="step", y_label=unit, width=curves.NARROW)


def _series(curve: Mapping[str, Any], name: str) -> curves.Series:
    return curves.Series(table.HEADS[curve["head"]], [tuple(point) for point in curve[name]], STYLES[curve["head"]])
