"""Whether a diffusion head was trained and used with the settings of the article and of BitDance, or with others, and
the sampler of an evaluation in words."""

from collections.abc import Mapping
from typing import Any

from bitlm.artifacts.record import Record
from bitlm.config import DiffusionConfig, EvaluateConfig, HeadConfig, ModelConfig, TrainConfig
from bitlm.config.sampler import SAMPLER_KEYS, SamplerConfig

ARTICLE, OURS = "article", "ours"
COMPARED_HEAD_KEYS = "denoiser", "context_path", "attention", "self_conditioning"
COMPARED_MODEL_KEYS = "mask", "input", "slot_embedding"


def departures(record: Record) -> list[str]:
    """Settings of a pretrain, finetune or evaluate record that are not the article's or BitDance's, in words."""
    theirs, used = _defaults(record.stage), _used(record)
    changed = [key for key in theirs if used.get(key, theirs[key]) != theirs[key]]
    described = [f"{key} = {used[key]} (there {theirs[key]})" for key in changed]
    if "init" in record.inputs:
        described.append(f"backbone of {record.inputs['init'].id} (there fresh)")
    elif "init" in record.identity:
        described.append("backbone of a ready checkpoint (there fresh)")
    return described


def of_system(evaluation: Record, by_id: Mapping[str, Record]) -> str | None:
    """``article`` or ``ours`` for the model that an evaluate record scored; None for the lead and for LM heads.

    ``by_id`` holds the ancestors of the record.
    """
    if evaluation.identity.get("head") != "diffusion":
        return None
    chain = [evaluation, by_id[evaluation.inputs["model"].id]]
    if "pretrain" in chain[-1].inputs:
        chain.append(by_id[chain[-1].inputs["pretrain"].id])
    return OURS if any(departures(record) for record in chain) else ARTICLE


def sampler(record: Record) -> str | None:
    """How the model of an evaluate record wrote, in short; None for a system without a model."""
    used = record.identity
    if used["system"] != "model":
        return None
    options = SamplerConfig.model_validate({key: used[key] for key in SAMPLER_KEYS & used.keys()})
    if used["head"] == "lm":
        return f"temperature {options.temperature:g}" if options.temperature else "greedy"
    text = options.sampler_name
    return text if departures(record) else f"{text} (article’s)"


def note(record: Record) -> str:
    """A sentence on a diffusion head's pretraining."""
    different = departures(record)
    choices = "the choices of the article and BitDance"
    if different:
        return f"The diffusion head {record.id} departs from {choices}: {', '.join(different)}."
    return f"The diffusion head {record.id} is trained with {choices}."


def _defaults(stage: str) -> dict[str, Any]:
    if stage == "evaluate":
        return EvaluateConfig().sampler_identity()
    training = {**DiffusionConfig().model_dump(mode="json"), "optimizer": TrainConfig().optimizer}
    if stage == "finetune":
        return training
    head = HeadConfig().model_dump(mode="json", include=set(COMPARED_HEAD_KEYS))
    model = ModelConfig().model_dump(mode="json", include=set(COMPARED_MODEL_KEYS))
    return {**training, **head, **model}


def _used(record: Record) -> dict[str, Any]:
    identity = record.identity
    if record.stage == "evaluate":
        return identity
    model = identity.get("model", {})
    return {**identity, **identity["diffusion"], **model, **model.get("head", {})}
