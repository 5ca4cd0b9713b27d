"""A group of keys: what every one of them refuses, and how an open-ended key is read."""

from __future__ import annotations

from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_groups(cls, values: Any) -> Any:
        """`lora:` with nothing under it is an empty group; a missing required group names its own missing keys."""
        if not isinstance(values, dict):
            return values
        groups = {
            n: f
            for n, f in cls.model_fields.items()
            if isinstance(f.annotation, type) and issubclass(f.annotation, BaseModel)
        }
        return values | {n: {} for n, f in groups.items() if values.get(n) is None and (n in values or f.is_required())}

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and "bool" not in str(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"expected a value, got {str(value).lower()}")
        return value


def from_the_command_line(value: Any) -> Any:
    """An open-ended key: `--data.chat_template_kwargs.enable_thinking false`, or all of it in YAML's braces."""
    value = yaml.safe_load(value) if isinstance(value, str) else value

    def typed(item: Any) -> Any:
        read = yaml.safe_load(item) if isinstance(item, str) else item
        return read if isinstance(read, bool | int | float) else item

    return {key: typed(item) for key, item in value.items()} if isinstance(value, dict) else value


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The group that a key is: `Lora`, or `Accuracy | None`, which may be left out; None of a key that is a value."""
    kinds = get_args(annotation)
    if len(kinds) == 2 and type(None) in kinds:
        annotation = next(kind for kind in kinds if kind is not type(None))
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
