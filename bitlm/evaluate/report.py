"""The report: one HTML page without any outside resource, and its tables as Markdown.

Both depend only on the results: the same artifacts give the same page, whenever it is made.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bitlm.artifacts.record import Record
from bitlm.evaluate import curves, table
from bitlm.evaluate.brier import NAMES
from bitlm.evaluate.lineage_svg import lineage_svg
from bitlm.evaluate.measures import MEASURES
from bitlm.evaluate.results import Results, range_of
from bitlm.text import markdown

STYLES = {"diffusion": 0, "lm": 1}
GROUPS = (
    ("ours", "This pipeline"),
    ("article", "The article’s table (arXiv 2605.11577), XSum test set, for orientation only"),
)
BRIER_N = {name: f"Brier-{n}" for n, name in enumerate(NAMES[:-1], 1)}
EXAMPLES_NOTE = "Evenly spaced rows of the split, not chosen by hand; texts are shown as they were generated."
VALIDATION_CAPTION = "Nats per token on held-out text, of the kind that the table above tells for each."
VALIDATION_NOTE = (
    "The last validation of each training. The LM head’s cross-entropy is exact, and so is a code length token by "
    "token, where each slot of a block is told the ones before it. An upper bound says that the true value is at most "
    "what is shown."
)
DIFFERENCES_CAPTION = (
    "ROUGE F1 ×100 of the diffusion head minus that of the LM head after the same training, on the same examples, with "
    "95% intervals of a paired bootstrap. Above 0 the diffusion head is better."
)
BRIER_CAPTION = (
    "Two samples of the next four tokens behind each of many prompts. Brier-n compares their first n tokens with the "
    "true ones: E[1{x₁=y} + 1{x₂=y} − 1{x₁=x₂}]. BrierLM is 100 times the geometric mean over n = 1 to 4 (arXiv "
    "2510.27688); more is better. Pretrained models continue held-out text, fine-tuned ones the reference summaries: "
    "compare rows of the same text. 95% bootstrap intervals over sequences; shares are paired by prompt."
)
EFFORTS_CAPTION = (
    "Sums over all trainings that led to a model. Seconds are those of the training steps; the shared ones belong to a "
    "start from which both heads go on. Fine-tuning fills the last block of a summary, so its tokens differ a little."
)
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
    if results["differences"]:
        parts += ["## Difference to the LM head", DIFFERENCES_CAPTION, _differences(results, rows)]
    if results["brier"]:
        parts += ["## BrierLM", BRIER_CAPTION, _brier(results, rows)]
    if results["outputs"]:
        parts += ["## What the texts took", _outputs(results["outputs"])]
    if results["efforts"]:
        parts += ["## What the trainings took", EFFORTS_CAPTION, _efforts(results["efforts"])]
    if results["validation"]:
        parts += ["## Likelihood on held-out text", VALIDATION_NOTE, _validation(results["validation"])]
    if results["notes"]:
        parts += ["## Notes", "\n".join(f"- {markdown(note)}" for note in results["notes"])]
    return "\n\n".join(parts) + "\n"


def _table(heads: Sequence[str], alignment: str, lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; ``alignment`` has an l or an r for each column."""
    rule = ["---:" if side == "r" else "---" for side in alignment]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *lines))


def _differences(results: Results, rows: Sequence[table.Row]) -> str:
    by_artifact = {row.artifact: row for row in rows}
    lines = []
    for pair in results["differences"]:
        row = by_artifact[pair["artifact"]]
        figures = [table.difference(pair, measure) for measure in MEASURES]
        lines.append([row.system, row.sampler or "–", *figures, f"{pair['examples']:,}"])
    return _table(["system", "sampler", *MEASURES.values(), "examples"], "llrrrrr", lines)


def _brier(results: Results, rows: Sequence[table.Row]) -> str:
    by_artifact = {row.artifact: row for row in rows}
    heads = ["system", "continues", "sampler", "BrierLM", "of the LM head’s", *BRIER_N.values(), "blocks"]
    lines = []
    for line in results["brier"]:
        brier_n = [f"{line[name]['value']:.4f}" for name in BRIER_N]
        told = by_artifact[line["artifact"]].system, line["text"], line["sampler"]
        lines.append([*told, table.brier_lm(line), table.share(line), *brier_n, f"{line['blocks']:,}"])
    return _table(heads, "lllrrrrrrr", lines)


def _outputs(outputs: Sequence[Mapping[str, Any]]) -> str:
    heads = ["system", "sampler", "head calls per token", "backbone passes per token", "words", "empty", "seconds"]
    lines = [
        [
            *(output["system"], output["sampler"]),
            *(f"{output[name]:.2f}" for name in ("head_calls_per_token", "backbone_passes_per_token")),
            *(f"{output['mean_words']:.1f}", f"{output['empty']:,}", f"{output['seconds']:,.0f}"),
        ]
        for output in outputs
    ]
    return _table(heads, "llrrrrr", lines)


def _efforts(efforts: Sequence[Mapping[str, Any]]) -> str:
    heads = ["model", "steps", "tokens", "seconds", "of these shared", "backbone", "head", "all parameters"]
    lines = [
        [
            *(found["system"], steps(found), f"{found['tokens']:,}"),
            *(f"{found[name]:,.0f}" for name in ("seconds", "shared_seconds")),
            *(f"{found['parameters'][part]:,}" for part in ("backbone", "head", "total")),
        ]
        for found in efforts
    ]
    return _table(heads, "lrrrrrrr", lines)


def _validation(validation: Sequence[Mapping[str, Any]]) -> str:
    heads = ["model", "step", "nats per token", "kind", "I-MMSE bound", "per slot", "bits per byte"]
    lines = [
        [
            *(line["system"], f"{line['step']:,}", f"{line['nats_per_token']:.4f}", line["kind"]),
            *(bound(line), slots(line), "–" if line["bits_per_byte"] is None else f"{line['bits_per_byte']:.4f}"),
        ]
        for line in validation
    ]
    return _table(heads, "lrrlrlr", lines)


def steps(effort: Mapping[str, Any]) -> str:
    """The steps of each training in the chain."""
    return " + ".join(f"{count:,}" for count in effort["steps"])


def bound(line: Mapping[str, Any]) -> str:
    nats = line["bound_nats_per_token"]
    return "–" if nats is None else f"{nats:.4f}"


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
        "bound": bound,
        "steps": steps,
        "by_artifact": {row.artifact: row for row in rows},
        "differences_caption": DIFFERENCES_CAPTION,
        "brier_caption": BRIER_CAPTION,
        "brier_n": BRIER_N,
        "efforts_caption": EFFORTS_CAPTION,
        "validation_note": VALIDATION_NOTE,
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
