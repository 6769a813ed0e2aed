import io
import json
import re
from html.parser import HTMLParser

import pytest
from made_up import ATTACK, SAMPLED, MadeUp, trained_for
from rich.console import Console

from bitlm.artifacts.record import InputEntry, Record
from bitlm.config import PipelineConfig, ReportConfig, TrainConfig
from bitlm.evaluate import brier_rows, choices, differences, effort, report, table
from bitlm.evaluate import results as results_module
from bitlm.evaluate.measures import MEASURES
from bitlm.evaluate.results import KINDS, Results, collect
from bitlm.steps import STAGES

OWN, ARTICLES = "descent K=4 ω=9 stagger 1", "descent K=15 ω=9 (article’s)"
SYSTEMS = [
    ("Lead-1 (first sentence)", None),
    ("Diffusion head, pretrained", OWN),
    ("Diffusion head, pretrained", ARTICLES),
    ("Diffusion head, fine-tuned", OWN),
    ("Diffusion head, fine-tuned", ARTICLES),
    ("LM head, pretrained", "greedy"),
    ("LM head, fine-tuned", "greedy"),
]
OURS = [system + (sampler or "") for system, sampler in SYSTEMS]
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
    """Collects the elements, the text, and the rows of each table by its id; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.tables: dict[str | None, list[list[str]]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(dict(attributes).get("id"), [])
        if tag == "tr":
            self.row: list[str] = []
        if tag in ("td", "th"):
            self.row.append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}>"
        if tag == "tr":
            self.rows.append(self.row)

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
    assert "".join(page.text).count(ATTACK) == 6  # one example of each row, shown as it was written
    assert "A <title>" in "".join(page.text)


def test_rouge_table_holds_our_rows_and_the_articles_apart(page: Page, results: Results) -> None:
    shown = {row[0]: row[1:] for row in page.tables["rouge"]}
    names = [row[0] for row in page.tables["rouge"]]
    ours, article = (
        names.index("This pipeline"),
        next(i for i, name in enumerate(names) if name.startswith("The article’s")),
    )
    assert names[ours + 1 : article] == OURS
    assert names[article + 1 :] == list(ARTICLE)
    for system, figures in ARTICLE.items():
        assert shown[system][1:4] == figures.split("/")
        assert shown[system][4:] == ["–", "–"]
    for name, row in zip(OURS, results["rows"], strict=False):
        score = row["scores"]["rouge2"]
        assert shown[name][2] == f"{score['f1']:.2f}{score['low']:.2f}–{score['high']:.2f}"
        assert shown[name][0] == (row["choices"] or "–")
        assert shown[name][5] == "40"


def test_notes_of_the_figures_are_on_the_page(page: Page) -> None:
    text = " ".join("".join(page.text).split())
    for note in (
        table.ARTICLE_NOTE,
        table.LEAD_NOTE,
        table.CHOICES_NOTE,
        "Figures rest on 40 examples",
        "6 outputs are empty",
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


def test_the_same_artifacts_give_the_same_page(results: Results, made_up: MadeUp, html: str) -> None:
    again = collect(made_up.store, made_up.subjects, ReportConfig(title="A <title>"), "tiny")
    assert again == results
    assert report.render_html(again, made_up.subjects.ancestry, list(STAGES)) == html


def test_last_validation_and_outputs(page: Page, results: Results) -> None:
    lines = {line["system"]: line for line in results["validation"]}
    assert [line["step"] for line in lines.values()] == [800, 300, 800, 300]
    assert lines["LM head, pretrained"]["kind"] == "exact"
    assert lines["LM head, pretrained"]["bound_nats_per_token"] is None
    diffusion = lines["Diffusion head, fine-tuned"]
    assert diffusion["kind"] == "exact, token by token"
    assert diffusion["bound_nats_per_token"] == pytest.approx(diffusion["nats_per_token"] + 0.5)
    assert [(output["system"], output["sampler"]) for output in results["outputs"]] == SYSTEMS[1:]
    for output in results["outputs"]:
        assert (output["mean_head_calls"], output["head_calls_per_token"]) == (30, 30 / 12)
        assert (output["backbone_passes_per_token"], output["empty"]) == (0.25, 1)
    shown = page.tables["outputs"][1]
    assert shown[:3] == [OURS[1], "2.50", "0.25"]


@pytest.mark.parametrize(
    ("kind", "bound", "expected"),
    [("bound", {}, ("upper bound", 3.5)), ("chain", {"validation_bound_nats_per_token": 3.9}, (KINDS["chain"], 3.9))],
)
def test_a_bound_stands_beside_what_is_exact(kind: str, bound: dict, expected: tuple) -> None:
    line = {"step": 7, "validation_nats_per_token": 3.5, "validation_kind": kind, **bound}
    curve = {"system": "x", "artifact": "y", "head": "diffusion", "last_validation": line}
    shown = results_module._last_validation(curve)
    assert (shown["kind"], shown["bound_nats_per_token"]) == expected


def test_each_diffusion_row_is_paired_with_the_lm_head_of_its_training(results: Results, made_up: MadeUp) -> None:
    names = {record.id: record.name for record in made_up.subjects.evaluations}
    pairs = [(names[pair["artifact"]], names[pair["against"]]) for pair in results["differences"]]
    assert pairs == [
        (f"tiny-diffusion-{training}{suffix}", f"tiny-lm-{training}")
        for training in ("pretrained", "finetuned")
        for suffix in ("", "-article")
    ]
    rows = {row["artifact"]: row["scores"] for row in results["rows"]}
    for pair in results["differences"]:
        for measure in MEASURES:
            ours, theirs = (rows[pair[side]][measure]["f1"] for side in ("artifact", "against"))
            assert pair[measure]["difference"] == pytest.approx(ours - theirs, abs=2e-4)
            assert pair[measure]["low"] <= pair[measure]["difference"] <= pair[measure]["high"]
    assert any(pair["rougeL"]["difference"] for pair in results["differences"])


def test_only_what_was_scored_on_the_same_examples_by_the_same_words_is_paired(made_up: MadeUp) -> None:
    store, evaluations = made_up.store, made_up.subjects.evaluations

    def evaluation(record: Record, **scores: str) -> differences.Evaluation:
        found = json.loads(store.read_bytes(record, "scores.json"))
        return record, found | scores, results_module._table(store, record, "predictions.parquet")

    diffusion, lm = (evaluation(evaluations[index]) for index in (3, 6))
    assert len(differences.to_lm_head([diffusion, lm])) == 1
    assert differences.to_lm_head([diffusion, evaluation(evaluations[5])]) == []  # of another training
    assert differences.to_lm_head([diffusion, evaluation(evaluations[6], implementation="other words")]) == []
    assert differences.to_lm_head([diffusion, (lm[0], lm[1], lm[2].slice(0, 39))]) == []


def test_brier_lm_stands_beside_the_share_of_the_lm_heads(page: Page, results: Results, made_up: MadeUp) -> None:
    names = {record.id: record.name for record in made_up.subjects.evaluations}
    found = {names[line["artifact"]]: line for line in results["brier"]}
    assert list(found) == [record.name for record in made_up.subjects.evaluations[1:]]
    for name, line in found.items():
        if "-lm-" in name:
            assert line["share"] is None
            continue
        against = names[line["share"]["against"]]
        assert against == f"tiny-lm-{'pretrained' if 'pretrained' in name else 'finetuned'}"
        ours, theirs = line["brier_lm"]["value"], found[against]["brier_lm"]["value"]
        assert line["share"]["value"] == pytest.approx(ours / theirs, abs=2e-6)
        assert line["share"]["low"] < line["share"]["value"] < line["share"]["high"]
    line, shown = found["tiny-diffusion-pretrained"], page.tables["brier"][1]
    assert shown[0] == f"Diffusion head, pretrained{SAMPLED}"
    assert shown[1] == "held-out text"
    for cell, score in zip(shown[2:4], (line["brier_lm"], line["share"]), strict=True):
        assert cell == f"{score['value']:.2f}{score['low']:.2f}–{score['high']:.2f}"
    assert shown[4:] == [*(f"{line[f'brier_{n}']['value']:.4f}" for n in range(1, 5)), "60"]
    assert page.tables["brier"][-1][3] == "–"


def test_only_samples_at_the_same_places_are_compared(made_up: MadeUp) -> None:
    def sampled(record: Record) -> brier_rows.Sampled:
        scores = json.loads(made_up.store.read_bytes(record, "scores.json"))["brier"]
        return record, scores, results_module._table(made_up.store, record, "continuations.parquet")

    diffusion, lm = (sampled(made_up.subjects.evaluations[index]) for index in (1, 5))
    assert [line["share"] is None for line in brier_rows.rows([diffusion, lm])] == [False, True]
    fewer = lm[0], lm[1], lm[2].slice(0, 59)
    other = lm[0], lm[1] | {"text": "reference summaries"}, lm[2]
    for foreign in (fewer, other):
        assert [line["share"] for line in brier_rows.rows([diffusion, foreign])] == [None, None]


def test_efforts_count_every_training_that_led_to_a_model(page: Page, results: Results) -> None:
    found = {effort["system"]: effort for effort in results["efforts"]}
    assert found["Diffusion head, fine-tuned"]["steps"] == [800, 300]
    assert found["Diffusion head, fine-tuned"]["tokens"] == 2048 * 1100
    assert found["Diffusion head, fine-tuned"]["seconds"] == 550
    assert found["LM head, pretrained"]["seconds"] == 200
    assert page.tables["efforts"][2] == [
        *("Diffusion head, fine-tuned", "800 + 300", "2,252,800", "550", "0", "2,000,000", "1,500,000", "3,500,000")
    ]


def test_a_start_counts_for_every_head_that_goes_on_from_it() -> None:
    tokens = {"lm-start": 10, "diffusion": 7, "lm": 7, "lm-other": 9}
    parents = {"diffusion": {"init": "lm-start"}, "lm": {"init": "lm-start"}, "lm-other": {}}
    tuned = {name: {"pretrain": name} for name in parents}
    records = {}
    for stage, of_stage in (("pretrain", {"lm-start": {}, **parents}), ("finetune", tuned)):
        for name, roles in of_stage.items():
            entries = {role: InputEntry(id=f"pretrain/{id}@v1", fingerprint="0" * 64) for role, id in roles.items()}
            seconds = tokens[name] if stage == "pretrain" else 1
            records[f"{stage}/{name}@v1"] = Record.model_construct(
                id=f"{stage}/{name}@v1",
                stage=stage,
                identity={"head": name.partition("-")[0]},
                inputs=entries,
                metrics=trained_for(3, "lm") | {"tokens": 100 * seconds, "train_seconds": seconds},
            )
    trained = [record for id, record in records.items() if "start" not in id]
    found = {one["artifact"]: one for one in effort.of_trainings(trained, records)}
    sums = {id: (one["tokens"], one["seconds"], one["shared_seconds"], one["steps"]) for id, one in found.items()}
    assert sums == {
        "pretrain/diffusion@v1": (1700, 17, 10, [3, 3]),
        "pretrain/lm@v1": (1700, 17, 10, [3, 3]),
        "pretrain/lm-other@v1": (900, 9, 0, [3]),
        "finetune/diffusion@v1": (1800, 18, 10, [3, 3, 3]),
        "finetune/lm@v1": (1800, 18, 10, [3, 3, 3]),
        "finetune/lm-other@v1": (1000, 10, 0, [3, 3]),
    }
    same = [one for one in found.values() if "other" not in one["artifact"]]
    assert effort.notes(same) == []
    told = effort.notes([*found.values()])
    assert len(told) == 1
    assert "pretrain/lm@v1 1,700, pretrain/lm-other@v1 900" in told[0]


def test_examples_are_evenly_spaced_and_hold_every_system(results: Results) -> None:
    assert [example["row"] for example in results["examples"]] == [0, 6, 13, 20, 26, 33]
    expected = [" · ".join(filter(None, told)) for told in SYSTEMS]
    assert [text["system"] for text in results["examples"][0]["texts"]] == expected


def test_markdown_holds_every_row(results: Results) -> None:
    markdown = report.render_markdown(results)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line.startswith("|")
    ]
    assert [(line[0], line[1]) for line in lines[2:9]] == [(system, sampler or "–") for system, sampler in SYSTEMS]
    assert [line[0] for line in lines[9:16]] == list(ARTICLE)
    assert {len(line) for line in lines[:16]} == {9}
    assert "/".join(lines[10][4:7]) == "29.70/9.21/23.24"
    pair = results["differences"][0]["rougeL"]
    assert f"{pair['difference']:+.2f} [{pair['low']:+.2f}, {pair['high']:+.2f}]" in markdown
    line = results["brier"][0]
    share = f"{line['share']['value']:.2f} [{line['share']['low']:.2f}, {line['share']['high']:.2f}]"
    assert f"| {table.brier_lm(line)} | {share} | {line['brier_1']['value']:.4f} |" in markdown
    for heading in ("BrierLM", "Difference to the LM head", "What the texts took", "What the trainings took"):
        assert f"## {heading}\n" in markdown
    assert table.ARTICLE_NOTE in markdown
    score = results["rows"][1]["scores"]["rouge1"]
    assert f"{score['f1']:.2f} [{score['low']:.2f}, {score['high']:.2f}]" in markdown


def test_markdown_shows_a_title_as_it_is(results: Results) -> None:
    assert report.render_markdown(results | {"title": "a*b* <i>[x](y)\n# z"}).startswith(
        r"# a\*b\* \<i\>\[x\](y)\\n\# z" + "\n\n"
    )


def test_terminal_table_fits_eighty_columns(results: Results) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    rows = [table.Row.model_validate(row) for row in results["rows"]]
    console.print(table.terminal(rows))
    console.print(table.terminal_differences(rows, results["differences"]))
    console.print(table.terminal_brier(rows, results["brier"]))
    console.print(table.terminal_models(results["efforts"], results["validation"]))
    text = console.export_text()
    models = text[text.index("nats per token") :]
    for system, *shown in (
        ("Diffusion head, fine-tuned", "2.25M", "550", "3.50M"),
        ("LM head, pretrained", "1.64M", "200"),
    ):
        line = next(line for line in models.splitlines() if system in line)
        assert set(shown) <= set(line.split())
    assert max(map(len, text.splitlines())) <= 80
    for pair in results["differences"]:
        assert table.difference(pair, "rouge1") in text
    for line in results["brier"]:
        assert table.brier_lm(line) in text
        assert table.share(line) in text
    for sampler in (OWN, ARTICLES):  # on one line each, in both tables
        assert text.count(sampler) == 4
    for row in results["rows"]:
        assert row["system"].split()[0] in text
        assert f"{row['scores']['rouge1']['f1']:.2f}" in text
    assert "…" not in text


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (999, "999"), (1000, "1.00k"), (45_600, "45.6k"), (2_252_800, "2.25M"), (151_936_000_000, "152B")],
)
def test_counts_have_three_digits(count: int, shown: str) -> None:
    assert table.human_count(count) == shown


def test_a_departure_from_the_articles_choices_is_told(results: Results, made_up: MadeUp) -> None:
    notes = [note for note in results["notes"] if "departs from the choices" in note]
    assert len(notes) == 1
    assert "loss = bce (there velocity)" in notes[0]
    assert "denoiser = matched_filter (there direct)" in notes[0]
    assert [row["choices"] for row in results["rows"]] == [None, *["ours"] * 4, *[None] * 9]


def test_departures_of_every_stage_are_found(made_up: MadeUp) -> None:
    records = {record.id: record for record in made_up.subjects.ancestry}
    evaluation = made_up.subjects.evaluations[3]
    finetune = records[evaluation.inputs["model"].id]
    pretrain = records[finetune.inputs["pretrain"].id]
    article = PipelineConfig.model_validate({"preset": "0.6b"})
    identities = {
        pretrain.id: {**pretrain.identity, "model": article.model.identity(), **_trained(article.pretrain)},
        finetune.id: {**finetune.identity, **_trained(article.finetune)},
    }
    for id, identity in identities.items():
        records[id] = records[id].model_copy(update={"identity": identity})
    evaluation = evaluation.model_copy(
        update={"identity": {**evaluation.identity, **article.evaluate.sampler_identity()}}
    )
    assert choices.of_system(evaluation, records) == "article"
    assert "is trained with the choices" in choices.note(records[pretrain.id])

    staggered = evaluation.model_copy(update={"identity": {**evaluation.identity, "stagger": 0.5}})
    assert choices.departures(staggered) == ["stagger = 0.5 (there 0.0)"]
    muon = records[finetune.id].model_copy(update={"identity": {**identities[finetune.id], "optimizer": "muon"}})
    assert choices.departures(muon) == ["optimizer = muon (there adamw)"]
    model = {**article.model.identity(), "mask": "causal"}
    model["head"] |= {"attention": "causal"}
    causal = records[pretrain.id].model_copy(update={"identity": {**identities[pretrain.id], "model": model}})
    assert choices.departures(causal) == ["attention = causal (there full)", "mask = causal (there block)"]
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
    scores = [{"examples": 40, "empty": 0}] * 6 + [{"examples": 30, "empty": 0}]
    assert any(
        "cannot be compared" in note
        for note in results_module._notes(made_up.subjects.evaluations, scores, made_up.subjects.ancestry)
    )


def test_rows_without_intervals_are_the_articles_only(results: Results) -> None:
    rows = [table.Row.model_validate(row) for row in results["rows"]]
    assert [row.source for row in rows] == ["ours"] * 7 + ["article"] * 7
    assert all((row.scores["rouge1"].low is None) == (row.source == "article") for row in rows)
    columns = {"system", "sampler", "choices", "source", "examples", *MEASURES.values()}
    assert [set(line) for line in table.plain(rows)] == [columns] * 14


def test_a_report_without_training_has_no_charts(made_up: MadeUp) -> None:
    lead = made_up.subjects.evaluations[:1]
    subjects = results_module.subjects(made_up.store, lead, [])
    assert subjects.ancestry == [made_up.subjects.ancestry[0], *lead]
    results = collect(made_up.store, subjects, ReportConfig(), "tiny")
    page = Page(report.render_html(results, subjects.ancestry, list(STAGES)))
    assert not [a for _, a in page.elements if a.get("class") == "chart"]
