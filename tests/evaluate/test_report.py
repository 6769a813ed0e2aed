import io
import json
import re
from html.parser import HTMLParser

import pytest
from made_up import ATTACK, MadeUp
from rich.console import Console

from bitlm.artifacts.record import InputEntry
from bitlm.config import PipelineConfig, ReportConfig, TrainConfig
from bitlm.evaluate import choices, report, table
from bitlm.evaluate import results as results_module
from bitlm.evaluate.measures import MEASURES
from bitlm.evaluate.results import Results, collect
from bitlm.steps import STAGES

OURS = [
    "Lead-1 (first sentence)",
    "Diffusion head, pretrained",
    "Diffusion head, fine-tuned",
    "LM head, pretrained",
    "LM head, fine-tuned",
]
ARTICLE = {
    "“Lead-3” (first sentence)": "16.30/1.60/11.95",
    "PTGEN": "29.70/9.21/23.24",
    "PTGEN + Coverage": "28.10/8.02/21.72",
    "BitLM 8B LM head, pretrained": "10.06/2.64/8.78",
    "BitLM 8B LM head, fine-tuned": "23.20/4.45/18.04",
    "BitLM 8B diffusion head, pretrained": "19.49/2.03/15.19",
    "BitLM 8B diffusion head, fine-tuned": "26.05/6.44/20.12",
}
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects the elements, the text, and the ROUGE table; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.rouge: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.in_rouge = dict(attributes).get("id") == "rouge"
        if tag == "tr":
            self.row: list[str] = []
        if tag in ("td", "th"):
            self.row.append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}>"
        if tag == "tr" and self.in_rouge:
            self.rouge.append(self.row)

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.row[-1] += data


@pytest.fixture(scope="module")
def results(made_up: MadeUp) -> Results:
    found = collect(made_up.store, made_up.subjects, ReportConfig(title="A <title>"), "tiny")
    return json.loads(json.dumps(found, allow_nan=False))  # it is plain JSON


@pytest.fixture(scope="module")
def html(results: Results, made_up: MadeUp) -> str:
    return report.render_html(results, made_up.subjects.ancestry, list(STAGES))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_needs_nothing_from_outside(page: Page, html: str) -> None:
    for tag, attributes in page.elements:
        assert tag not in {"script", "img", "link", "iframe", "object", "embed", "base", "image", "use", "form"}
        assert not {"src", "href", "xlink:href", "srcset", "data", "action", "background"} & set(attributes), (
            tag,
            attributes,
        )
        assert not [name for name in attributes if name.startswith("on")]
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_text_from_outside_is_escaped(page: Page, html: str) -> None:
    assert ATTACK not in html
    assert "".join(page.text).count(ATTACK) == 4  # one example of each model, shown as it was written
    assert "A <title>" in "".join(page.text)


def test_rouge_table_holds_our_rows_and_the_articles_apart(page: Page, results: Results) -> None:
    shown = {row[0]: row[1:] for row in page.rouge}
    names = [row[0] for row in page.rouge]
    ours, article = (
        names.index("This pipeline"),
        next(i for i, name in enumerate(names) if name.startswith("The article’s")),
    )
    assert names[ours + 1 : article] == OURS
    assert names[article + 1 :] == list(ARTICLE)
    for system, figures in ARTICLE.items():
        assert shown[system][1:4] == figures.split("/")
        assert shown[system][4:] == ["–", "–"]
    for row in results["rows"][:5]:
        score = row["scores"]["rouge2"]
        assert shown[row["system"]][2] == f"{score['f1']:.2f}{score['low']:.2f}–{score['high']:.2f}"
        assert shown[row["system"]][0] == (row["choices"] or "–")
        assert shown[row["system"]][5] == "40"


def test_notes_of_the_figures_are_on_the_page(page: Page) -> None:
    text = " ".join("".join(page.text).split())
    for note in (
        table.ARTICLE_NOTE,
        table.LEAD_NOTE,
        table.CHOICES_NOTE,
        "Figures rest on 40 examples",
        "4 outputs are empty",
        "rouge-score 0.1.2, stemming",
    ):
        assert note in text


def test_every_curve_and_artifact_is_shown(page: Page, made_up: MadeUp) -> None:
    text = "".join(page.text)
    lines = [a for tag, a in page.elements if tag == "path" and (a.get("class") or "").startswith("line s")]
    legends, curves = 2 * 4, 2 * 4  # two heads in validation and loss of two stages
    assert len(lines) == legends + curves
    for record in made_up.subjects.ancestry:
        assert record.id in text
    assert "diffusion.t_mean" in text  # configuration
    assert text.count("upper bound") >= 2


def test_the_same_artifacts_give_the_same_page(results: Results, made_up: MadeUp, html: str) -> None:
    again = collect(made_up.store, made_up.subjects, ReportConfig(title="A <title>"), "tiny")
    assert again == results
    assert report.render_html(again, made_up.subjects.ancestry, list(STAGES)) == html


def test_last_validation_and_outputs(results: Results) -> None:
    lines = {line["system"]: line for line in results["validation"]}
    assert [line["step"] for line in lines.values()] == [800, 300, 800, 300]
    assert lines["LM head, pretrained"]["kind"] == "exact"
    assert lines["Diffusion head, fine-tuned"]["kind"] == "upper bound"
    assert [output["mean_calls"] for output in results["outputs"]] == [30] * 4
    assert [output["empty"] for output in results["outputs"]] == [1] * 4


def test_examples_are_evenly_spaced_and_hold_every_system(results: Results) -> None:
    assert [example["row"] for example in results["examples"]] == [0, 6, 13, 20, 26, 33]
    assert [text["system"] for text in results["examples"][0]["texts"]] == OURS


def test_markdown_holds_every_row(results: Results) -> None:
    markdown = report.render_markdown(results)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line.startswith("|")
    ]
    assert [line[0] for line in lines[2:14]] == OURS + list(ARTICLE)
    assert {len(line) for line in lines[:14]} == {8}
    assert "/".join(lines[8][3:6]) == "29.70/9.21/23.24"
    assert table.ARTICLE_NOTE in markdown
    score = results["rows"][1]["scores"]["rouge1"]
    assert f"{score['f1']:.2f} [{score['low']:.2f}, {score['high']:.2f}]" in markdown


def test_markdown_shows_a_title_as_it_is(results: Results) -> None:
    assert report.render_markdown(results | {"title": "a*b* <i>[x](y)\n# z"}).startswith(
        r"# a\*b\* \<i\>\[x\](y)\\n\# z" + "\n\n"
    )


def test_terminal_table_fits_eighty_columns(results: Results) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table.terminal([table.Row.model_validate(row) for row in results["rows"]]))
    text = console.export_text()
    for row in results["rows"]:
        assert row["system"].split()[0] in text
        assert f"{row['scores']['rouge1']['f1']:.2f}" in text
    assert "…" not in text


def test_a_departure_from_the_articles_choices_is_told(results: Results, made_up: MadeUp) -> None:
    notes = [note for note in results["notes"] if "departs from the choices" in note]
    assert len(notes) == 1
    assert "loss = bce (there velocity)" in notes[0]
    assert "denoiser = matched_filter (there direct)" in notes[0]
    assert [row["choices"] for row in results["rows"]] == [None, "ours", "ours", None, None, *[None] * 7]


def test_departures_of_every_stage_are_found(made_up: MadeUp) -> None:
    records = {record.id: record for record in made_up.subjects.ancestry}
    evaluation = made_up.subjects.evaluations[2]
    finetune = records[evaluation.inputs["model"].id]
    pretrain = records[finetune.inputs["pretrain"].id]
    article = PipelineConfig.model_validate({"preset": "0.6b"})
    identities = {
        pretrain.id: {**pretrain.identity, "model": article.model.identity(), **_trained(article.pretrain)},
        finetune.id: {**finetune.identity, **_trained(article.finetune)},
    }
    for id, identity in identities.items():
        records[id] = records[id].model_copy(update={"identity": identity})
    evaluation = evaluation.model_copy(update={"identity": {**evaluation.identity, **article.evaluate.identity()}})
    assert choices.of_system(evaluation, records) == "article"
    assert "is trained with the choices" in choices.note(records[pretrain.id])

    staggered = evaluation.model_copy(update={"identity": {**evaluation.identity, "stagger": 0.5}})
    assert choices.departures(staggered) == ["stagger = 0.5 (there 0.0)"]
    muon = records[finetune.id].model_copy(update={"identity": {**identities[finetune.id], "optimizer": "muon"}})
    assert choices.departures(muon) == ["optimizer = muon (there adamw)"]
    start = InputEntry(id="pretrain/tiny-lm@v1", fingerprint="0" * 64)
    started = records[pretrain.id].model_copy(update={"inputs": {**pretrain.inputs, "init": start}})
    assert choices.departures(started) == ["backbone of pretrain/tiny-lm@v1 (there fresh)"]
    ready = records[pretrain.id].model_copy(update={"identity": {**identities[pretrain.id], "init": {"kind": "hub"}}})
    assert choices.departures(ready) == ["backbone of a ready checkpoint (there fresh)"]
    for one in (muon, started, ready):
        assert choices.of_system(evaluation, {**records, one.id: one}) == "ours"
    assert choices.of_system(staggered, records) == "ours"


def _trained(config: TrainConfig) -> dict:
    return {"diffusion": config.diffusion.model_dump(mode="json"), "optimizer": config.optimizer}


def test_systems_scored_on_other_examples_are_told(made_up: MadeUp) -> None:
    scores = [{"examples": 40, "empty": 0}] * 4 + [{"examples": 30, "empty": 0}]
    assert any(
        "cannot be compared" in note
        for note in results_module._notes(made_up.subjects.evaluations, scores, made_up.subjects.ancestry)
    )


def test_rows_without_intervals_are_the_articles_only(results: Results) -> None:
    rows = [table.Row.model_validate(row) for row in results["rows"]]
    assert [row.source for row in rows] == ["ours"] * 5 + ["article"] * 7
    assert all((row.scores["rouge1"].low is None) == (row.source == "article") for row in rows)
    columns = {"system", "choices", "source", "examples", *MEASURES.values()}
    assert [set(line) for line in table.plain(rows)] == [columns] * 12


def test_a_report_without_training_has_no_charts(made_up: MadeUp) -> None:
    lead = made_up.subjects.evaluations[:1]
    subjects = results_module.subjects(made_up.store, lead, [])
    assert subjects.ancestry == [made_up.subjects.ancestry[0], *lead]
    results = collect(made_up.store, subjects, ReportConfig(), "tiny")
    page = Page(report.render_html(results, subjects.ancestry, list(STAGES)))
    assert not [a for _, a in page.elements if a.get("class") == "chart"]
