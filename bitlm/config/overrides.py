"""The whole pipeline's configuration: a preset with overrides. A mistake ends in one line that names the key."""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ValidationError, model_validator

from bitlm.config.presets import PRESETS
from bitlm.config.sections import Sections
from bitlm.errors import ConfigError

Preset = Literal[*PRESETS]


class PipelineConfig(Sections):
    """A preset with some values changed, for example ``{"preset": "4b", "pretrain": {"steps": 10}}``."""

    preset: Preset = "tiny"

    @model_validator(mode="before")
    @classmethod
    def _add_preset(cls, overrides: Any) -> Any:
        if not isinstance(overrides, Mapping):
            return overrides
        preset = overrides.get("preset", "tiny")
        if preset not in PRESETS:
            raise ValueError(f"preset = {preset!r} is unknown; presets: {', '.join(PRESETS)}")
        return _merge(PRESETS[preset]().model_dump(), overrides)


def configure(preset: str = "tiny", assignments: Iterable[str] = ()) -> PipelineConfig:
    """Apply ``stage.key=value`` assignments to a preset. A value that is valid JSON is read as JSON, any other as text.

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


def validate(overrides: Mapping[str, Any]) -> PipelineConfig:
    """``PipelineConfig.model_validate`` that raises ConfigError for the first mistake."""
    try:
        return PipelineConfig.model_validate(overrides)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None


def keys(model: type[BaseModel] = PipelineConfig, prefix: str = "") -> list[str]:
    """Every dotted key that ``--set`` accepts."""
    dotted = []
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            dotted += keys(nested, f"{prefix}{name}.")
        else:
            dotted.append(prefix + name)
    return dotted


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


def _merge(base: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overrides.items():
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


def nearest(word: str, valid: Iterable[str]) -> str:
    """``; the nearest valid one is …`` for an error message, or "" if none is similar.

    Among dotted keys, those with the same last part come before all others.
    """
    valid = list(valid)
    leaf = word.rsplit(".", 1)[-1]
    same_leaf = [key for key in valid if key.rsplit(".", 1)[-1] == leaf]
    matches = difflib.get_close_matches(word, same_leaf or valid, n=1, cutoff=0.3)
    return f"; the nearest valid one is {matches[0]}" if matches else ""
