import pytest

from bitlm.artifacts.record import Record
from bitlm.config import configure
from bitlm.errors import ConfigError, SourceError
from bitlm.steps import ROLES, SAMPLER_KEYS, STAGES, Step, init_records, steps


def _by_key(*assignments: str) -> dict[str, Step]:
    return {step.key: step for step in steps(configure("tiny", assignments))}


def _changed(*assignments: str) -> set[str]:
    before, after = _by_key(), _by_key(*assignments)
    return {key for key in before if before[key].fingerprint != after[key].fingerprint}


def test_inputs_come_before_their_users_and_keys_are_unique():
    seen: set[str] = set()
    for step in steps(configure("tiny")):
        assert step.stage in STAGES
        assert {made.key for made in step.inputs.values()} <= seen
        assert step.key not in seen
        seen.add(step.key)


def test_the_table_lists_the_roles_of_every_step():
    """Those of the report are named after what it shows, and cannot be filled by a user."""
    used: dict[str, set[str]] = {stage: set() for stage in STAGES}
    for start in ("lm", "null"):
        for step in steps(configure("tiny", [f"pretrain.init_from={start}"])):
            used[step.stage] |= set(step.inputs)
    del used["report"]
    assert used == {stage.name: set(stage.roles) for stage in STAGES.values() if stage.name != "report"}
    assert ROLES == ("corpus", "tokenizer", "tokens", "init", "pretrain", "model")


def test_the_tokenizer_of_rouge_changes_the_evaluations_alone():
    assert not _changed("evaluate.tokenizer=rouge")
    changed = _changed("evaluate.tokenizer=unicode")
    assert {key.partition("/")[0] for key in changed} == {"evaluate", "report"}
    assert changed == {key for key in _by_key() if key.startswith(("evaluate/", "report/"))}
    assert "tokenizer" not in _by_key()["evaluate/tiny-lead"].identity


def test_a_given_record_takes_the_place_of_the_step_of_its_stage_and_head():
    identity = {"head": "diffusion"}
    record = Record.model_construct(id="finetune/x@v1", stage="finetune", identity=identity, fingerprint="0")
    plain, replaced = steps(configure("tiny")), steps(configure("tiny"), {"model": record})
    changed = {after.key for before, after in zip(plain, replaced, strict=True) if before.inputs != after.inputs}
    evaluated = {"evaluate/tiny-diffusion-finetuned", "evaluate/tiny-diffusion-finetuned-article"}
    assert changed == evaluated | {"report/tiny"}
    by_key = {step.key: step for step in replaced}
    evaluation = by_key["evaluate/tiny-diffusion-finetuned"]
    assert evaluation.inputs["model"] is record
    report = by_key["report/tiny"]
    assert report.inputs["evaluate:tiny-diffusion-finetuned"] is evaluation
    assert report.inputs["finetune:diffusion"] is by_key["finetune/tiny-diffusion"]


OWN_SAMPLER = {
    "evaluate/tiny-lead",
    "evaluate/tiny-diffusion-pretrained",
    "evaluate/tiny-diffusion-finetuned",
    "evaluate/tiny-lm-pretrained",
    "evaluate/tiny-lm-finetuned",
}


def test_a_diffusion_head_is_also_evaluated_with_the_articles_sampler():
    by_key = _by_key()
    articles = {"evaluate/tiny-diffusion-pretrained-article", "evaluate/tiny-diffusion-finetuned-article"}
    assert {key for key in by_key if key.startswith("evaluate/")} == OWN_SAMPLER | articles
    assert articles <= {made.key for made in by_key["report/tiny"].inputs.values()}
    own, article = (by_key[f"evaluate/tiny-diffusion-finetuned{suffix}"] for suffix in ("", "-article"))
    theirs = {"num_steps": 15, "guidance_scale": 9.0, "guidance_form": "prediction", "stagger": 0.0, "void": "clamp"}
    assert theirs.items() <= article.identity.items()
    keys = own.identity.keys() | article.identity.keys()
    assert {key for key in keys if own.identity.get(key) != article.identity.get(key)} <= SAMPLER_KEYS
    assert own.inputs == article.inputs


@pytest.mark.parametrize("preset", ["tiny-article", "0.6b"])
def test_where_the_sampler_is_the_articles_there_is_one_row(preset, monkeypatch):
    monkeypatch.setattr("bitlm.steps.corpus_identity", lambda section: {})
    monkeypatch.setattr("bitlm.steps.corpus_location", lambda section: {})
    monkeypatch.setattr("bitlm.steps.tokenizer_identity", lambda section: {})
    keys = [step.key for step in steps(configure(preset)) if step.stage == "evaluate"]
    assert len(keys) == 5
    assert not any(key.endswith("article") for key in keys)


@pytest.mark.parametrize(
    "assignment",
    [
        "pretrain.execution.num_workers=2",
        "tokens.execution.num_workers=1",
        "evaluate.execution.batch_size=3",
        "pretrain.execution.micro_batch_size=1",
        "finetune.execution.checkpoint_every=7",
    ],
)
def test_where_and_how_fast_change_no_fingerprint(assignment):
    assert _changed(assignment) == set()


def test_a_change_reaches_exactly_what_depends_on_it():
    lm = {key for key in _by_key() if "tiny-lm" in key}
    diffusion = {key for key in _by_key() if "tiny-diffusion" in key}
    assert _changed("pretrain.diffusion.noise_draws=2") == diffusion | {"report/tiny"}
    assert _changed("model.block_size=8") == diffusion | {"report/tiny"}
    assert _changed("model.slot_embedding=true") == diffusion | {"report/tiny"}
    assert _changed("evaluate.lead_sentences=2") == {"evaluate/tiny-lead", "report/tiny"}
    own = {key for key in diffusion & OWN_SAMPLER}
    assert _changed("evaluate.slots_per_call=2") == own | {"report/tiny"}
    assert _changed("pretrain.steps=3") == lm | diffusion | {"report/tiny"}
    assert _changed("tokenizer.vocab_size=999") == set(_by_key()) - {"corpus/tiny", "evaluate/tiny-lead"}


def _checkpoint(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


PLAIN = "pretrain.init_from=null"


@pytest.mark.parametrize("heads", ['["diffusion", "lm"]', '["diffusion"]'])
def test_all_heads_go_on_from_one_lm_head_of_this_pipeline(heads):
    chosen = f"pretrain.heads={heads}", "pretrain.steps=7", "pretrain.batch_size=6"
    plain, started = _by_key(PLAIN, *chosen), _by_key("pretrain.init_from=lm", *chosen)
    assert set(started) == set(plain) | {"pretrain/tiny-lm-start"}
    start = started["pretrain/tiny-lm-start"]
    assert start.fingerprint == _by_key(PLAIN, *chosen[1:])["pretrain/tiny-lm"].fingerprint
    for key in [key for key in plain if key.startswith("pretrain/")]:
        assert list(started).index(start.key) < list(started).index(key)
        assert started[key].inputs["init"] is start
        assert started[key].identity == plain[key].identity | {"first_position": 42}
        assert started[key].fingerprint != plain[key].fingerprint
    assert start.key not in {made.key for made in started["report/tiny"].inputs.values()}
    other = _by_key("pretrain.init_from=lm", *chosen, "pretrain.diffusion.noise_draws=2")
    assert other[start.key].fingerprint == start.fingerprint


def test_the_lm_head_alone_has_no_start():
    plain, started = (_by_key(given, 'pretrain.heads=["lm"]') for given in (PLAIN, "pretrain.init_from=lm"))
    assert {key: step.fingerprint for key, step in started.items()} == {k: s.fingerprint for k, s in plain.items()}


def test_a_given_artifact_is_the_start_of_both_heads():
    record = Record.model_construct(id="pretrain/x@v1", stage="pretrain", identity={"head": "lm"}, fingerprint="0")
    config = configure("tiny", ["pretrain.init_from=pretrain/x"])
    loaded = []
    found = init_records(config, lambda id: loaded.append(id) or record)
    assert (found, loaded) == ({"init": record}, ["pretrain/x"])
    by_id = {step.key: step for step in steps(config, found)}
    by_input = steps(configure("tiny", ["pretrain.init_from=lm"]), {"init": record})
    for step in by_input:
        assert by_id[step.key].fingerprint == step.fingerprint
        assert (step.inputs.get("init") is record) == (step.stage == "pretrain")
        assert "first_position" not in step.identity
    with pytest.raises(ConfigError, match=r"init = finetune/x@v1: training starts from a pretrain artifact"):
        steps(config, {"init": record.model_copy(update={"id": "finetune/x@v1", "stage": "finetune"})})


def test_a_checkpoint_elsewhere_counts_by_its_content(tmp_path):
    here, there = _checkpoint(tmp_path / "here"), _checkpoint(tmp_path / "there")
    plain, first, second = (_by_key(given) for given in (PLAIN, *(f"pretrain.init_from={f}" for f in (here, there))))
    for key in ("pretrain/tiny-lm", "pretrain/tiny-diffusion"):
        assert first[key].fingerprint == second[key].fingerprint != plain[key].fingerprint
    (there / "model.safetensors").write_bytes(b"other weights")
    changed = _by_key(f"pretrain.init_from={there}")
    assert changed["pretrain/tiny-lm"].fingerprint != first["pretrain/tiny-lm"].fingerprint
    with pytest.raises(SourceError, match=r"nowhere/config\.json is missing"):
        _by_key(f"pretrain.init_from={tmp_path}/nowhere")


def test_only_pretrained_models_are_measured_on_the_text_and_only_where_it_is_asked_for():
    evaluations = {key: step for key, step in _by_key().items() if key.startswith("evaluate/")}
    with_text = {key for key, step in evaluations.items() if "tokens" in step.inputs}
    assert with_text == {key for key in evaluations if "-pretrained" in key} != set()
    assert all(step.inputs["tokens"].key == "tokens/tiny" for key, step in evaluations.items() if key in with_text)
    without = _by_key("evaluate.brier_blocks=0")
    assert not [key for key, step in without.items() if key.startswith("evaluate/") and "tokens" in step.inputs]
    assert without["evaluate/tiny-lead"].fingerprint == evaluations["evaluate/tiny-lead"].fingerprint
