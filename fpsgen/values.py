"""Dataclasses from what `dataclasses.asdict` made of them, as JSON has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Value = TypeVar("Value")


def from_dict(kind: type[Value], told: Mapping[str, Any]) -> Value:
    """A value of the dataclass `kind`, with the dataclasses, lists, tuples and dictionaries in it.

    Keys that no field has are passed over, and a field that has no key keeps its default, so that older files can be
    read. Numbers and texts are not checked. TypeError where a field has neither a key nor a default, or a value has
    another form.
    """
    hints = get_type_hints(kind)
    given = {own.name: _value(hints[own.name], told[own.name]) for own in fields(kind) if own.name in told}  # type: ignore[arg-type]
    return kind(**given)


def _value(hint: Any, told: Any) -> Any:
    outer, inner = get_origin(hint), get_args(hint)
    if told is None:
        return None
    if outer in (Union, UnionType):
        return _value(next(one for one in inner if one is not NoneType), told)
    if is_dataclass(hint):
        return from_dict(hint, told)  # type: ignore[arg-type]
    if outer is list:
        return [_value(inner[0], one) for one in told]
    if outer is tuple:
        return tuple(_value(inner[0], one) for one in told)
    if outer is dict:
        return {key: _value(inner[1], one) for key, one in told.items()}
    return told
