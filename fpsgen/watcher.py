"""Whoever looks on while hours of work are done."""

from __future__ import annotations

from typing import Protocol


class Watcher(Protocol):
    """Work is counted in steps of both guidance branches."""

    def phase(self, name: str) -> None: ...

    def total(self, work: float) -> None: ...

    def advance(self, work: float) -> None: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...
