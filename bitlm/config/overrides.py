"""The whole pipeline's configuration: a preset, and overrides on top of it, with one clear line for each mistake."""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ValidationError, model_validator

from bitlm.config.presets import PRESETS
from bitlm.config.sections import Sections
from bitlm.errors import ConfigError

Preset = Literal["tiny", "tiny-article", "0.6b", "1.7b", "4b", "8b"]


class PipelineConfig(Sections):
    """``PipelineConfig.model_validate({"preset": "4b", "pretrain": {"steps": 10}})``: the preset, one value changed."""

    preset: Preset = "tiny"

    @model_validator(mode="before")
    @classmethod
    def _over_preset(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        preset = given.get("preset", "tiny")
        if preset not in PRESETS:
            raise ValueError(f"preset = {preset!r} is unknown; presets: {', '.join(PRESETS)}")
        return _merge(PRESETS[preset]().model_dump(), given)


def configure(preset: str = "tiny", assignments: Iterable[str] = ()) -> PipelineConfig:
    """Apply ``stage.key=value`` assignments to a preset. Values are read as JSON where they are JSON, else as text.

    Raises ConfigError, in one line that names the key, for an unknown key (with the nearest valid one), a wrong type or
    an impossible combination.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r} is unknown{nearest(preset, PRESETS)}; presets: {', '.join(PRESETS)}")
    overrides: dict[str, Any] = {"preset": preset}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set {assignment}: expected stage.key=value")
        _assign(overrides, key, _value(text))
    return validate(overrides)


def validate(given: Mapping[str, Any]) -> PipelineConfig:
    """``PipelineConfig.model_validate`` with the first mistake told as a ConfigError."""
    try:
        return PipelineConfig.model_validate(given)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None


def keys(model: type[BaseModel] = PipelineConfig, prefix: str = "") -> list[str]:
    """Every dotted key that ``--set`` accepts."""
    found = []
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            found += keys(nested, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{key} is unknown{nearest(key, keys())}")
    tree[leaf] = value


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        value = value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{key} is unknown{nearest(key, keys())}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key} = {json.dumps(first['input'], default=str)}: {message}" if key else message


def nearest(word: str, known: Iterable[str]) -> str:
    """``; the nearest valid one is …``, or nothing where none is near."""
    known = list(known)
    leaf = word.rsplit(".", 1)[-1]
    same_leaf = [k for k in known if k.rsplit(".", 1)[-1] == leaf]
    found = difflib.get_close_matches(word, same_leaf or known, n=1, cutoff=0.3)
    return f"; the nearest valid one is {found[0]}" if found else ""
