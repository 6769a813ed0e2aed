"""The whole pipeline's configuration: a preset with overrides. A mistake ends in one line that names the key."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError, model_validator

from bitlm.config.presets import PRESETS
from bitlm.config.sections import Sections
from bitlm.errors import ConfigError
from bitlm.text import short

Preset = Literal[*PRESETS]
_REMEDIES = {
    "string_type": '; in JSON a text stands in quotes, such as "2024"',
    "tuple_type": '; give a list, such as ["lm"]',
}


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
    """Apply ``stage.key=value`` assignments to a preset; of several for one key the last counts.

    The value of a key that holds text is taken as it is written, unless it is a JSON string; that of any other key is
    read as JSON if it can be.
    Raises ConfigError, in one line that names the key, for an unknown key (with the nearest valid one), a wrong type or
    an impossible combination.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r} is unknown{nearest(preset, PRESETS)}; presets: {', '.join(PRESETS)}")
    overrides: dict[str, Any] = {"preset": preset}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not key or not separator:
            raise ConfigError(f"--set {short(assignment)}: expected stage.key=value, for example pretrain.steps=2000")
        nested = _value(key, text)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        overrides = _merge(overrides, nested)
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
        if _is_section(field.annotation):
            dotted += keys(field.annotation, f"{prefix}{name}.")
        else:
            dotted.append(prefix + name)
    return dotted


def _value(key: str, text: str) -> Any:
    """What the text of an assignment means for its key. Raises ConfigError for a key that cannot be set."""
    kind = _kind(key)
    if kind is None:
        raise ConfigError(f"{short(key)} is unknown{nearest(key, keys())}")
    kinds = set(_kinds(kind))
    value = _json(text)
    if _is_section(kind):
        if not isinstance(value, dict):
            example = next(iter(kind.model_fields))
            raise ConfigError(f"{key} is a section: set one of its values, for example {key}.{example}=…")
        return value
    if str in kinds and type(value) not in kinds:
        return text
    return text if isinstance(value, bool) and bool not in kinds else value  # true is no number


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also for a number of too many digits, and for too many brackets
        return text


def _kind(key: str) -> Any:
    """The annotation of the field that a dotted key names; None if there is no such field."""
    kind: Any = PipelineConfig
    for part in key.split("."):
        if not _is_section(kind) or part not in kind.model_fields:
            return None
        kind = kind.model_fields[part].annotation
    return kind


def _kinds(annotation: Any) -> Iterator[type]:
    """The types of values that an annotation allows."""
    if get_origin(annotation) is Literal:
        yield from map(type, get_args(annotation))
    elif isinstance(annotation, UnionType):
        for each in get_args(annotation):
            yield from _kinds(each)
    else:
        yield get_origin(annotation) or annotation


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


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
        return f"{short(key)} is unknown{nearest(key, keys())}"
    message = first["msg"].removeprefix("Value error, ") + _REMEDIES.get(first["type"], "")
    return (
        f"{key} = {short(json.dumps(first['input'], default=str, ensure_ascii=False))}: {message}" if key else message
    )


def nearest(word: str, valid: Iterable[str]) -> str:
    """``; the nearest valid one is …`` for an error message, or "" if none is similar.

    Among dotted keys, those with the same last part come before all others.
    """
    valid = list(valid)
    leaf = word.rsplit(".", 1)[-1]
    same_leaf = [key for key in valid if key.rsplit(".", 1)[-1] == leaf]
    matches = difflib.get_close_matches(word, same_leaf or valid, n=1, cutoff=0.3)
    return f"; the nearest valid one is {matches[0]}" if matches else ""
