"""Dataclasses from JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest

from fpsgen.values import from_dict


@dataclass(frozen=True)
class Part:
    name: str
    sigma: tuple[float, float] = (1.0, 0.0)
    kind: Literal["a", "b"] | None = None


@dataclass
class Whole:
    first: Part
    maybe: Part | None
    parts: list[Part]
    fixed: tuple[Part, ...]
    by_name: dict[str, list[Part | None]]
    free: dict[str, Any] = field(default_factory=dict)
    added: int = 7


WHOLE = Whole(
    Part("x", kind="a"), None, [Part("y"), Part("z", (0.5, 0.25))], (Part("w"),), {"k": [None, Part("v")]}, {"n": [1]}
)


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(asdict(value)))


@pytest.mark.parametrize("value", [WHOLE, Whole(Part(""), Part("m"), [], (), {})])
def test_a_value_comes_back_as_it_was(value: Whole) -> None:
    assert from_dict(Whole, through_json(value)) == value


def test_keys_of_other_versions_are_no_fault() -> None:
    """A newer version's key is passed over; an older one's field has its default; without a default there is none."""
    told = through_json(WHOLE)
    told["first"]["unknown"] = 1
    del told["added"], told["parts"][0]["sigma"]
    assert from_dict(Whole, told) == WHOLE
    del told["first"]["name"]
    with pytest.raises(TypeError, match="name"):
        from_dict(Whole, told)
