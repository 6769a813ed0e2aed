"""The stages of the pipeline, and a configuration's steps: what each computes, from which inputs, under which name.

Nothing runs here. A stage is a kind of work; a step is one artifact that a stage makes (each head has its own pretrain
step, for example).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from bitlm.artifacts.record import Record, fingerprint
from bitlm.artifacts.store import Store
from bitlm.config import EvaluateConfig, Head, PipelineConfig
from bitlm.config.sampler import SAMPLER_KEYS
from bitlm.config.stages import InitKind, init_kind
from bitlm.data.sources.state import corpus_identity, corpus_location, tokenizer_identity
from bitlm.errors import ConfigError


@dataclass(frozen=True)
class Stage:
    """One kind of work in the pipeline."""

    name: str
    format: int
    """Raised when the files of the stage change their meaning, so that older artifacts are not reused as new ones."""
    roles: tuple[str, ...]
    """The inputs for which a user may name an artifact (``--input ROLE=ID``). The report has none: its inputs are
    whatever the configuration trains and evaluates."""
    purpose: str
    task: str
    """The module that holds the Prefect task ``task``. A name, because the library does not import the tasks."""


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="corpus",
            format=3,
            roles=(),
            purpose="Text to pretrain on, and the summarization set.",
            task="bitlm_tasks.corpus",
        ),
        Stage(
            name="tokenizer",
            format=1,
            roles=("corpus",),
            purpose="A trained or a ready tokenizer, and the number of bits of its codes.",
            task="bitlm_tasks.tokenizer",
        ),
        Stage(
            name="tokens",
            format=2,
            roles=("corpus", "tokenizer"),
            purpose="The corpus as shards of binary codes.",
            task="bitlm_tasks.tokens",
        ),
        Stage(
            name="pretrain",
            format=5,
            roles=("tokens", "tokenizer", "init"),
            purpose="A model for each head of `config.pretrain.heads`.",
            task="bitlm_tasks.pretrain",
        ),
        Stage(
            name="finetune",
            format=4,
            roles=("pretrain", "corpus", "tokenizer"),
            purpose="The pretrained models, taught to summarize.",
            task="bitlm_tasks.finetune",
        ),
        Stage(
            name="evaluate",
            format=3,
            roles=("model", "corpus", "tokenizer", "tokens"),
            purpose="Summaries and their ROUGE for the lead baseline and for every model, and the models' BrierLM.",
            task="bitlm_tasks.evaluate",
        ),
        Stage(
            name="report",
            format=3,
            roles=(),
            purpose="One page that shows it all.",
            task="bitlm_tasks.report",
        ),
    )
}
"""In the order in which the pipeline runs them."""

ROLES = tuple(dict.fromkeys(role for stage in STAGES.values() for role in stage.roles))


@dataclass(frozen=True)
class Step:
    """One artifact to make: its stage, its configuration and its inputs (other steps, or artifacts that exist)."""

    stage: str
    name: str
    identity: dict[str, Any]
    """What is computed. Part of the fingerprint."""
    execution: dict[str, Any]
    """Where and how fast. Only recorded."""
    inputs: "Mapping[str, Step | Record]"

    @property
    def key(self) -> str:
        return f"{self.stage}/{self.name}"

    @property
    def format(self) -> int:
        return STAGES[self.stage].format

    @cached_property
    def fingerprint(self) -> str:
        parents = {role: parent.fingerprint for role, parent in self.inputs.items()}
        return fingerprint(self.stage, self.format, self.identity, parents)


def steps(config: PipelineConfig, replacements: Mapping[str, Record] | None = None) -> list[Step]:
    """Every step of the pipeline, inputs before their users.

    ``replacements`` maps a role to the artifact that fills it instead of the step that would.
    Raises SourceError if a configured source is missing, before any work.
    """
    replacements = replacements or {}
    corpus = _corpus(config)
    tokenizer = _tokenizer(config, corpus)
    tokens = _step("tokens", config.corpus.name, config.tokens, corpus=corpus, tokenizer=tokenizer)
    pretrained = _pretrained(config, tokens, tokenizer, replacements.get("init"))
    evaluations = [_lead(config, corpus)]
    trained = []
    for head in config.pretrain.heads:
        pretrain = pretrained[head]
        finetune = _finetune(config, head, pretrain, corpus, tokenizer)
        trained += [pretrain, finetune]
        inputs = {"corpus": corpus, "tokenizer": tokenizer}
        text = {"tokens": tokens} if config.evaluate.brier_blocks else {}  # that a pretrained model continues
        evaluations += _evaluations(config, f"{head}-pretrained", {"model": pretrain, **inputs, **text})
        evaluations += _evaluations(config, f"{head}-finetuned", {"model": finetune, **inputs})
    finetuned = [step for step in trained if step.stage == "finetune"]
    report = _report(config, evaluations, trained, tokens)
    return _replace([corpus, tokenizer, tokens, *pretrained.values(), *finetuned, *evaluations, report], replacements)


def init_records(config: PipelineConfig, load: Callable[[str], Record]) -> dict[str, Record]:
    """The replacement that ``steps`` needs if ``pretrain.init_from`` is the id of an artifact; else none."""
    return {"init": load(config.pretrain.init_from)} if _init_kind(config) == "artifact" else {}


def find_artifact(parent: Step | Record, store: Store) -> Record | None:
    """The artifact itself, or the one that has the fingerprint of the step; None if that is still to be made.

    A corpus must also refer to the place where its files lie now: the same files at another place have the same
    fingerprint, but they can only be read here.
    """
    if isinstance(parent, Record):
        return parent
    if parent.stage != "corpus":
        return store.find(parent.stage, parent.name, parent.fingerprint)
    expected = (parent.fingerprint, parent.execution)
    records = reversed(store.records(parent.stage, parent.name))
    return next((record for record in records if (record.fingerprint, record.execution) == expected), None)


def missing_input(step: Step, role: str) -> str:
    """What to tell a user if the artifact of an input step does not exist."""
    parent = step.inputs[role]
    assert isinstance(parent, Step)
    return (
        f"{step.key} needs {parent.key}, which has not been made with this configuration: "
        f"run `bitlm run {parent.stage}` first, add --upstream, or name one with --input {role}=ID"
    )


def _replace(all_steps: list[Step], replacements: Mapping[str, Record]) -> list[Step]:
    """The same steps, with every input that a replacement fits taken from it. ``all_steps``: inputs first."""
    new: dict[str, Step] = {}
    for step in all_steps:
        inputs = {
            role: _fitting(step, role, replacements) or (new[parent.key] if isinstance(parent, Step) else parent)
            for role, parent in step.inputs.items()
        }
        new[step.key] = replace(step, inputs=inputs)
    return list(new.values())


def _fitting(step: Step, role: str, replacements: Mapping[str, Record]) -> Record | None:
    """The replacement for one input, if its stage and head are those of the step that it takes the place of."""
    record, parent = replacements.get(role), step.inputs[role]
    if record is None or role not in STAGES[step.stage].roles or isinstance(parent, Record):
        return None
    same = record.stage == parent.stage and record.identity.get("head") == parent.identity.get("head")
    return record if same else None


def _make(stage: str, name: str, identity: dict[str, Any], execution: BaseModel | None = None, **inputs: Step) -> Step:
    return Step(stage, name, identity, execution.model_dump(mode="json") if execution else {}, inputs)


def _step(stage: str, name: str, section: Any, **inputs: Step) -> Step:
    return _make(stage, name, section.identity(), getattr(section, "execution", None), **inputs)


def _corpus(config: PipelineConfig) -> Step:
    section = config.corpus
    location = corpus_location(section)  # first, since it refuses a credential before it is sent
    return Step("corpus", section.name, corpus_identity(section), location, {})


def _tokenizer(config: PipelineConfig, corpus: Step) -> Step:
    section = config.tokenizer
    if section.source == "train":
        return _step("tokenizer", config.corpus.name, section, corpus=corpus)
    return _make("tokenizer", config.corpus.name, tokenizer_identity(section))


def _pretrained(config: PipelineConfig, tokens: Step, tokenizer: Step, init: Record | None) -> dict[str, Step]:
    """The pretrain step of each head. If the diffusion head starts from an LM head of this pipeline, that ``start``
    comes first and every head goes on from it, so that all have seen the same tokens when they are compared.
    """
    heads = config.pretrain.heads
    if init is not None and init.stage != "pretrain":
        raise ConfigError(f"init = {init.id}: training starts from a pretrain artifact")
    if init is None and _init_kind(config) == "lm" and "diffusion" in heads:
        start = _pretrain(config, "lm", tokens, tokenizer, None, suffix="-start")
        return {"start": start, **{head: _pretrain(config, head, tokens, tokenizer, start) for head in heads}}
    assert init is not None or _init_kind(config) != "artifact", "pass the record of init_records"
    return {head: _pretrain(config, head, tokens, tokenizer, init) for head in heads}


def _pretrain(
    config: PipelineConfig, head: Head, tokens: Step, tokenizer: Step, init: Step | Record | None, suffix: str = ""
) -> Step:
    of_blocks = {"head", "block_size", "mask", "slot_embedding"}  # the LM head has blocks of one token
    model = config.model.model_dump(mode="json", exclude={"scale"} | (of_blocks if head == "lm" else set()))
    identity = {"head": head, "model": model, **config.pretrain.identity_for(head)}
    del identity["init_from"]  # the input, or the state of the checkpoint, says what training starts from
    if init is None and _init_kind(config) in ("hub", "folder"):
        identity["init"] = _checkpoint_state(config)
    if isinstance(init, Step):  # the order of the data goes on behind what the start has seen
        identity["first_position"] = init.identity["steps"] * init.identity["batch_size"]
    name = f"{config.model.scale}-{head}{suffix}"
    step = _make("pretrain", name, identity, config.pretrain.execution, tokens=tokens, tokenizer=tokenizer)
    return step if init is None else replace(step, inputs={**step.inputs, "init": init})


def _init_kind(config: PipelineConfig) -> InitKind | None:
    init_from = config.pretrain.init_from
    return None if init_from is None else init_kind(init_from)


def _checkpoint_state(config: PipelineConfig) -> dict[str, Any]:
    from bitlm.model.weights import outside_state  # loads torch, which takes seconds

    return outside_state(config.pretrain.init_from)


def _finetune(config: PipelineConfig, head: Head, pretrain: Step, corpus: Step, tokenizer: Step) -> Step:
    identity = {"head": head, "prompt": config.prompt.identity(), **config.finetune.identity_for(head)}
    inputs = {"pretrain": pretrain, "corpus": corpus, "tokenizer": tokenizer}
    return _make("finetune", f"{config.model.scale}-{head}", identity, config.finetune.execution, **inputs)


def _evaluations(config: PipelineConfig, label: str, inputs: dict[str, Step]) -> list[Step]:
    """With the configured sampler and, for a diffusion head whose sampler is another one, also with the article's."""
    head, evaluate = inputs["model"].identity["head"], config.evaluate
    excluded = {"execution", "lead_sentences", *_default_tokenizer(config), *SAMPLER_KEYS}
    identity = evaluate.model_dump(mode="json", exclude=excluded)
    identity |= {"system": "model", "head": head, "prompt": config.prompt.identity()}
    if head == "lm":
        identities = {label: identity | {"temperature": evaluate.temperature}}
    else:
        own, article = evaluate.sampler_identity(), EvaluateConfig().sampler_identity()
        identities = {label: identity | own}
        if own != article:
            identities[f"{label}-article"] = identity | article
    execution, scale = evaluate.execution, config.model.scale
    return [_make("evaluate", f"{scale}-{name}", found, execution, **inputs) for name, found in identities.items()]


def _lead(config: PipelineConfig, corpus: Step) -> Step:
    """The baseline: the first sentences of each document."""
    included = {"split", "examples", "lead_sentences", "bootstrap_samples", "seed", "tokenizer"} - _default_tokenizer(
        config
    )
    identity = {"system": "lead", **config.evaluate.model_dump(mode="json", include=included)}
    return _make("evaluate", f"{config.corpus.name}-lead", identity, config.evaluate.execution, corpus=corpus)


def _default_tokenizer(config: PipelineConfig) -> set[str]:
    """The key of ROUGE's tokenizer if it is the default: evaluations from before there was another stay valid."""
    return {"tokenizer"} if config.evaluate.tokenizer == "rouge" else set()


def _report(config: PipelineConfig, evaluations: list[Step], trained: list[Step], tokens: Step) -> Step:
    inputs = {f"evaluate:{step.name}": step for step in evaluations}
    inputs |= {f"{step.stage}:{step.identity['head']}": step for step in trained}
    identity = {**config.report.identity(), "preset": config.preset}
    return _make("report", config.model.scale, identity, tokens=tokens, **inputs)
