"""Runs of `fpsgen generate` that end as no run does that is explained, and leave the state of their video."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from fpsgen.unfinished import Unfinished
from tests.tools.cli import invoke


class Killed(BaseException):
    """Ends a run as nothing does that is explained."""


def stopped(step: int, *args: object) -> None:
    """A run that ends once the state after a step is kept."""
    real = Unfinished.keep

    def keep(self: Unfinished, state: Any, *rest: Any) -> Any:
        yield from real(self, state, *rest)
        if state.step == step:
            raise Killed  # and what is being written arrives

    killed_in(Unfinished, "keep", keep, *args)


def killed_in(owner: type, name: str, instead: Callable[..., Any], *args: object) -> None:
    """A run that a method ends, which stands in the place of another."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(owner, name, instead)
        with pytest.raises(Killed):
            invoke(*args)


def killed(*_: object) -> None:
    raise Killed


def with_hash(body: bytes) -> bytes:
    """What a file of a state contains, whose body this is."""
    return body + hashlib.sha256(body).digest()
