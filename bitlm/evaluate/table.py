"""The ROUGE table for HTML, Markdown, the terminal and Prefect: our rows, then the article's."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.table import Table

from bitlm.artifacts.record import Record
from bitlm.config.frozen import Frozen
from bitlm.evaluate import choices
from bitlm.evaluate.measures import MAIN_MEASURES, MEASURES
from bitlm.text import markdown as escaped

TRAININGS = {"pretrain": "pretrained", "finetune": "fine-tuned"}
HEADS = {"diffusion": "Diffusion head", "lm": "LM head"}
ARTICLE = "article (arXiv 2605.11577)"
ARTICLE_NOTE = (
    "The article's rows are copied from its table: the whole XSum test set and, for BitLM, 8B models. "
    "They are not comparable with a small model, with other text, or with few examples."
)
CHOICES_NOTE = (
    "Choices: whether a diffusion head was made and used with the article's and BitDance's options or with some of "
    "ours; the notes tell which."
)
LEAD_NOTE = (
    "The row that the article calls Lead-3 carries XSum's LEAD figures, which take the first sentence only; "
    "our lead row says how many sentences it takes."
)
_ARTICLE_FIGURES = (
    ("“Lead-3” (first sentence)", 16.30, 1.60, 11.95),
    ("PTGEN", 29.70, 9.21, 23.24),
    ("PTGEN + Coverage", 28.10, 8.02, 21.72),
    ("BitLM 8B LM head, pretrained", 10.06, 2.64, 8.78),
    ("BitLM 8B LM head, fine-tuned", 23.20, 4.45, 18.04),
    ("BitLM 8B diffusion head, pretrained", 19.49, 2.03, 15.19),
    ("BitLM 8B diffusion head, fine-tuned", 26.05, 6.44, 20.12),
)


class Score(Frozen):
    """F1 ×100. Ours have a 95% interval, the article's have none."""

    f1: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return f"{self.f1:.2f}" if self.low is None else f"{self.f1:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Row(Frozen):
    system: str
    source: Literal["ours", "article"]
    scores: dict[str, Score]
    sampler: str | None = None
    """As ``choices.sampler``."""
    choices: str | None = None
    """Whose options the diffusion head was trained and used with: ``article`` or ``ours``. None for other systems."""
    examples: int | None = None
    artifact: str | None = None


def system_label(record: Record) -> str:
    """What an evaluate record evaluated, in words; the sampler is told beside it."""
    identity = record.identity
    if identity["system"] == "lead":
        count = identity["lead_sentences"]
        return f"Lead-{count} ({'first sentence' if count == 1 else f'first {count} sentences'})"
    training = TRAININGS[record.inputs["model"].id.partition("/")[0]]
    return f"{HEADS[identity['head']]}, {training}"


def rows(evaluations: Sequence[tuple[Record, Mapping[str, Any], str | None]]) -> list[Row]:
    """One row for each (evaluate record, its scores.json, its ``choices.of_system``), in order, then the article's."""
    ours = [
        Row(
            system=system_label(record),
            source="ours",
            sampler=choices.sampler(record),
            choices=of_system,
            examples=scores["examples"],
            artifact=record.id,
            scores={measure: Score.model_validate(scores[measure]) for measure in MEASURES},
        )
        for record, scores, of_system in evaluations
    ]
    article = [
        Row(
            system=system,
            source="article",
            scores={m: Score(f1=f1) for m, f1 in zip(MAIN_MEASURES, figures, strict=True)},
        )
        for system, *figures in _ARTICLE_FIGURES
    ]
    return ours + article


def cells(row: Row) -> list[str]:
    """The figures of a row as text, in the order of ``MEASURES``; a dash if there is none."""
    return [str(row.scores[measure]) if measure in row.scores else "–" for measure in MEASURES]


def markdown(table: Sequence[Row]) -> str:
    head = ["system", "sampler", "choices", "source", *MEASURES.values(), "examples"]
    lines = [_line(head), _line(["---"] * 4 + ["---:"] * (len(MEASURES) + 1))]
    for row in table:
        source = f"`{row.artifact}`" if row.artifact else ARTICLE
        examples = f"{row.examples:,}" if row.examples else "–"
        told = escaped(row.system), row.sampler or "–", row.choices or "–"
        lines.append(_line([*told, source, *cells(row), examples]))
    return "\n".join(lines)


def difference(pair: Mapping[str, Any], measure: str) -> str:
    """A difference of ``rouge.paired`` with its interval."""
    found = pair[measure]
    return f"{found['difference']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def brier_lm(line: Mapping[str, Any]) -> str:
    """BrierLM of one of the results' ``brier``, with its interval."""
    found = line["brier_lm"]
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def share(line: Mapping[str, Any]) -> str:
    """BrierLM as a share of the LM head's, with its interval; a dash where there is nothing to compare with."""
    found = line["share"]
    if found is None or found["value"] is None:
        return "–"
    interval = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    return f"{found['value']:.2f}{interval}"


def terminal_brier(table: Sequence[Row], lines: Sequence[Mapping[str, Any]]) -> Table:
    """For a terminal of 80 columns: the results' ``brier``."""
    shown = Table(title="BrierLM of sampled blocks [95% interval], and as a share of the LM head's")
    shown.add_column("system")
    for name in ("BrierLM", "share"):
        shown.add_column(name, justify="right", no_wrap=True)
    by_artifact = {row.artifact: row for row in table}
    for line in lines:
        system = f"{by_artifact[line['artifact']].system}\n  {line['sampler']}"
        shown.add_row(system, brier_lm(line), share(line))
    return shown


def terminal_differences(table: Sequence[Row], pairs: Sequence[Mapping[str, Any]]) -> Table:
    """For a terminal of 80 columns: ROUGE-1 and ROUGE-L of ``differences.to_lm_head``."""
    shown = Table(title="ROUGE F1 ×100 minus that of the LM head on the same examples [95% interval]")
    shown.add_column("system")
    by_artifact = {row.artifact: row for row in table}
    measures = ("rouge1", "rougeL")
    for measure in measures:
        shown.add_column(MEASURES[measure], justify="right", no_wrap=True)
    for pair in pairs:
        shown.add_row(_two_lines(by_artifact[pair["artifact"]]), *(difference(pair, m) for m in measures))
    return shown


def terminal(table: Sequence[Row]) -> Table:
    """For a terminal of 80 columns: ROUGE-1/2/L. The article's rows are dim and stand below a rule."""
    counts = sorted({row.examples for row in table if row.examples})
    shown = Table(
        title=f"ROUGE F1 ×100 ± half the 95% interval; examples: {' or '.join(f'{count:,}' for count in counts)}",
        caption=ARTICLE_NOTE,
        caption_justify="left",
    )
    shown.add_column("system")
    for measure in MAIN_MEASURES:
        shown.add_column(MEASURES[measure], justify="right", no_wrap=True)
    for source, style, prefix in (("ours", None, ""), ("article", "dim", "article: ")):
        for row in (row for row in table if row.source == source):
            shown.add_row(
                prefix + _two_lines(row), *(_short(row.scores[measure]) for measure in MAIN_MEASURES), style=style
            )
        shown.add_section()
    return shown


def terminal_models(efforts: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> Table:
    """For a terminal of 80 columns: the results' ``efforts``, and ``validation`` where there is one, by model."""
    nats = {line["artifact"]: line for line in validation}
    shown = Table(title="nats per token of held-out text (≤: an upper bound), and all that the trainings took")
    shown.add_column("model")
    for name in ("nats", "tokens", "seconds", "parameters"):
        shown.add_column(name, justify="right", no_wrap=True)
    for effort in efforts:
        line = nats.get(effort["artifact"])
        bound = "≤ " if line and line["nats_per_token"] == line["bound_nats_per_token"] else ""
        shown.add_row(
            effort["system"],
            "–" if line is None else f"{bound}{line['nats_per_token']:.3f}",
            human_count(effort["tokens"]),
            f"{effort['seconds']:,.0f}",
            human_count(effort["parameters"]["total"]),
        )
    return shown


def human_count(count: int) -> str:
    """Three digits: 999, 1.23k, 45.6M."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 1000)):
        if count >= size:
            digits = max(0, 3 - len(str(count // size)))
            return f"{count / size:.{digits}f}{unit}"
    return str(count)


def plain(table: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as text, for a Prefect table artifact."""
    return [
        {
            "system": row.system,
            "sampler": row.sampler or "–",
            "choices": row.choices or "–",
            "source": row.artifact or ARTICLE,
            **dict(zip(MEASURES.values(), cells(row), strict=True)),
            "examples": row.examples or "–",
        }
        for row in table
    ]


def _two_lines(row: Row) -> str:
    return row.system if row.sampler is None else f"{row.system}\n  {row.sampler}"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _short(score: Score) -> str:
    return f"{score.f1:.2f}" if score.low is None else f"{score.f1:.2f} ± {(score.high - score.low) / 2:.2f}"
