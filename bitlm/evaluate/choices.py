"""Which of the options that the article leaves open, or decides, a diffusion head was made with."""

from collections.abc import Mapping
from typing import Any

from bitlm.artifacts.record import Record
from bitlm.config import DiffusionConfig, EvaluateConfig, HeadConfig, ModelConfig, TrainConfig

ARTICLE, OURS = "article", "ours"
_HEAD = ("denoiser", "context_path")
_SAMPLER = ("num_steps", "guidance_scale", "guidance_form", "time_grid", "stagger", "void", "commit_threshold")


def departures(record: Record) -> list[str]:
    """Settings of a pretrain, finetune or evaluate record that are not the article's or BitDance's, in words."""
    theirs, used = _defaults(record.stage), _used(record)
    changed = [key for key in theirs if used.get(key, theirs[key]) != theirs[key]]
    found = [f"{key} = {used[key]} (there {theirs[key]})" for key in changed]
    if "init" in record.inputs:
        found.append(f"backbone of {record.inputs['init'].id} (there fresh)")
    elif "init" in record.identity:
        found.append("backbone of a ready checkpoint (there fresh)")
    return found


def of_system(evaluation: Record, by_id: Mapping[str, Record]) -> str | None:
    """``article`` or ``ours`` for what an evaluate record scored; None where the diffusion head has no part in it.

    ``by_id`` holds the record's ancestors.
    """
    if evaluation.identity.get("head") != "diffusion":
        return None
    chain = [evaluation, by_id[evaluation.inputs["model"].id]]
    if "pretrain" in chain[-1].inputs:
        chain.append(by_id[chain[-1].inputs["pretrain"].id])
    return OURS if any(departures(record) for record in chain) else ARTICLE


def note(record: Record) -> str:
    """A sentence on a diffusion head's pretraining."""
    found = departures(record)
    whose = "the choices of the article and BitDance"
    if found:
        return f"The diffusion head {record.id} departs from {whose}: {', '.join(found)}."
    return f"The diffusion head {record.id} is trained with {whose}."


def _defaults(stage: str) -> dict[str, Any]:
    if stage == "evaluate":
        return EvaluateConfig().model_dump(mode="json", include=set(_SAMPLER))
    training = {**DiffusionConfig().model_dump(mode="json"), "optimizer": TrainConfig().optimizer}
    if stage == "finetune":
        return training
    head = HeadConfig().model_dump(mode="json", include=set(_HEAD))
    return {**training, **head, "slot_embedding": ModelConfig().slot_embedding}


def _used(record: Record) -> dict[str, Any]:
    identity = record.identity
    if record.stage == "evaluate":
        return identity
    model = identity.get("model", {})
    return {**identity, **identity["diffusion"], **model, **model.get("head", {})}
