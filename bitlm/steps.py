"""The pipeline as a list of steps: what each stage computes, from which inputs, under which name. Nothing runs here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from bitlm.artifacts.record import Record, fingerprint
from bitlm.config import Head, PipelineConfig
from bitlm.data.sources import listing as sources
from bitlm.errors import ConfigError
from bitlm.model import weights

STAGES = ("corpus", "tokenizer", "tokens", "pretrain", "finetune", "evaluate", "report")

# Raised when a stage's files change their meaning, so that older artifacts are not taken for new ones.
FORMATS = {"corpus": 1, "tokenizer": 1, "tokens": 2, "pretrain": 4, "finetune": 3, "evaluate": 2, "report": 2}

# Settings of the diffusion sampler: no part of the LM head's evaluation.
SAMPLER_KEYS = {
    "num_steps", "guidance_scale", "guidance_form", "time_grid", "time_shift", "stagger", "void", "commit_threshold",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One artifact to be: a stage with its configuration and its inputs (other steps, or records given by the user)."""

    stage: str
    name: str
    identity: dict[str, Any]
    execution: dict[str, Any]
    inputs: "Mapping[str, Step | Record]"

    @property
    def key(self) -> str:
        return f"{self.stage}/{self.name}"

    @property
    def format(self) -> int:
        return FORMATS[self.stage]

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(
            self.stage, self.format, self.identity, {role: made.fingerprint for role, made in self.inputs.items()}
        )


def steps(config: PipelineConfig, given: Mapping[str, Record] | None = None) -> list[Step]:
    """Every step of the pipeline, inputs before their users.

    ``given`` maps an input role to a record that takes the place of the step that would fill it.
    Raises SourceError where a configured source is missing, before any work.
    """
    given = given or {}
    assert _init_kind(config) != "artifact" or "init" in given, "init_records tells the artifact of pretrain.init_from"
    corpus = _corpus(config)
    tokenizer = _tokenizer(config, corpus, given)
    tokens = _step("tokens", config.corpus.name, config.tokens, given, corpus=corpus, tokenizer=tokenizer)
    made = [corpus, tokenizer, tokens]
    evaluations = [_lead(config, corpus, given)]
    pretrained = _pretrained(config, tokens, tokenizer, given)
    trained = []
    for head in config.pretrain.heads:
        pretrain = pretrained[head]
        finetune = _finetune(config, head, pretrain, corpus, tokenizer, given)
        trained += [pretrain, finetune]
        for model, training in ((pretrain, "pretrained"), (finetune, "finetuned")):
            evaluations.append(_evaluate(config, f"{head}-{training}", model, corpus, tokenizer, given))
    finetuned = [step for step in trained if step.stage == "finetune"]
    return [*made, *pretrained.values(), *finetuned, *evaluations, _report(config, evaluations, trained, tokens)]


def init_records(config: PipelineConfig, load: Callable[[str], Record]) -> dict[str, Record]:
    """What ``steps`` is given for the role ``init`` where ``pretrain.init_from`` is an artifact's id."""
    return {"init": load(config.pretrain.init_from)} if _init_kind(config) == "artifact" else {}


def select(all_steps: list[Step], stages: list[str], given: Mapping[str, Record], upstream: bool) -> list[Step]:
    """The steps of the named stages (all where none is named), with what they need before them if ``upstream``.

    Where inputs are given, only the steps that take one of them are meant.
    """
    chosen = [step for step in all_steps if not stages or step.stage in stages]
    if given:
        records = {record.id for record in given.values()}
        chosen = [s for s in chosen if any(isinstance(i, Record) and i.id in records for i in s.inputs.values())]
        if not chosen:
            named = ", ".join(stages) or "the pipeline"
            raise ConfigError(f"--input: no step of {named} takes {', '.join(sorted(records))} as {', '.join(given)}")
    if upstream:
        needed: set[str] = set()
        for step in chosen:
            _collect(step, needed)
        chosen = [step for step in all_steps if step.key in needed]
    return chosen


def _collect(step: Step, keys: set[str]) -> None:
    keys.add(step.key)
    for made in step.inputs.values():
        if isinstance(made, Step):
            _collect(made, keys)


def _filled(role: str, default: Step, given: Mapping[str, Record]) -> Step | Record:
    record = given.get(role)
    if record is None or record.stage != default.stage:
        return default
    same_head = record.identity.get("head") == default.identity.get("head")
    return record if same_head else default


def _make(
    stage: str, name: str, identity: dict[str, Any], execution: Any, given: Mapping[str, Record], **inputs: Step
) -> Step:
    ran = execution.model_dump(mode="json") if execution is not None else {}
    return Step(stage, name, identity, ran, {role: _filled(role, made, given) for role, made in inputs.items()})


def _step(stage: str, name: str, section: Any, given: Mapping[str, Record], **inputs: Step) -> Step:
    return _make(stage, name, section.identity(), getattr(section, "execution", None), given, **inputs)


def _corpus(config: PipelineConfig) -> Step:
    state = sources.corpus_state(config.corpus)
    return _make("corpus", config.corpus.name, {**config.corpus.identity(), **state}, None, {})


def _tokenizer(config: PipelineConfig, corpus: Step, given: Mapping[str, Record]) -> Step:
    section = config.tokenizer
    if section.source == "train":
        return _step("tokenizer", config.corpus.name, section, given, corpus=corpus)
    identity = {key: value for key, value in section.identity().items() if key != "vocab_size"}
    return _make("tokenizer", config.corpus.name, {**identity, **sources.tokenizer_state(section)}, None, given)


def _pretrained(config: PipelineConfig, tokens: Step, tokenizer: Step, given: Mapping[str, Record]) -> dict[Head, Step]:
    """The pretraining of each head, the LM head's first where the other one starts from it, even if only for that."""
    heads = config.pretrain.heads
    start = given.get("init")
    if start is not None and start.stage != "pretrain":
        raise ConfigError(f"init = {start.id}: training starts from a pretrain artifact")
    if _init_kind(config) == "lm" and start is None and "diffusion" in heads:
        lm = _pretrain(config, "lm", tokens, tokenizer, given, None)
        return {"lm": lm, "diffusion": _pretrain(config, "diffusion", tokens, tokenizer, given, lm)}
    return {head: _pretrain(config, head, tokens, tokenizer, given, start) for head in heads}


def _pretrain(
    config: PipelineConfig, head: Head, tokens: Step, tokenizer: Step, given: Mapping[str, Record],
    start: Step | Record | None,
) -> Step:  # fmt: skip
    excluded = {"scale"} if head == "diffusion" else {"scale", "head", "block_size", "slot_embedding"}
    model = config.model.model_dump(mode="json", exclude=excluded)
    identity = {"head": head, "model": model, **config.pretrain.identity_for(head)}
    del identity["init_from"]  # told by the input, or by what the checkpoint holds
    if start is None and _init_kind(config) in ("hub", "folder"):
        identity["init"] = weights.outside_state(config.pretrain.init_from)
    name = f"{config.model.scale}-{head}"
    made = _make("pretrain", name, identity, config.pretrain.execution, given, tokens=tokens, tokenizer=tokenizer)
    return made if start is None else replace(made, inputs={**made.inputs, "init": start})


def _init_kind(config: PipelineConfig) -> weights.Kind | None:
    named = config.pretrain.init_from
    return None if named is None else weights.kind(named)


def _finetune(
    config: PipelineConfig, head: Head, pretrain: Step, corpus: Step, tokenizer: Step, given: Mapping[str, Record]
) -> Step:
    identity = {"head": head, "prompt": config.prompt.identity(), **config.finetune.identity_for(head)}
    inputs = {"pretrain": pretrain, "corpus": corpus, "tokenizer": tokenizer}
    return _make("finetune", f"{config.model.scale}-{head}", identity, config.finetune.execution, given, **inputs)


def _evaluate(
    config: PipelineConfig, label: str, model: Step, corpus: Step, tokenizer: Step, given: Mapping[str, Record]
) -> Step:
    head = model.identity["head"]
    excluded = {"execution", "lead_sentences"} | (SAMPLER_KEYS if head == "lm" else set())
    identity = config.evaluate.model_dump(mode="json", exclude=excluded)
    identity |= {"system": "model", "head": head, "prompt": config.prompt.identity()}
    inputs = {"model": model, "corpus": corpus, "tokenizer": tokenizer}
    return _make("evaluate", f"{config.model.scale}-{label}", identity, config.evaluate.execution, given, **inputs)


def _lead(config: PipelineConfig, corpus: Step, given: Mapping[str, Record]) -> Step:
    kept = {"split", "examples", "lead_sentences", "bootstrap_samples", "seed"}
    identity = {"system": "lead", **config.evaluate.model_dump(mode="json", include=kept)}
    return _make("evaluate", f"{config.corpus.name}-lead", identity, config.evaluate.execution, given, corpus=corpus)


def _report(config: PipelineConfig, evaluations: list[Step], trained: list[Step], tokens: Step) -> Step:
    inputs = {f"evaluate:{step.name}": step for step in evaluations}
    inputs |= {f"{step.stage}:{step.identity['head']}": step for step in trained}
    identity = {**config.report.identity(), "preset": config.preset}
    return _make("report", config.model.scale, identity, None, {}, tokens=tokens, **inputs)
