"""A disk that becomes full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def fill_disk(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Files that appear whole, of this suffix, find no room from here on."""

    def full(real: Any) -> Any:
        def write(self: Path, *args: Any, **more: Any) -> int:
            written = real(self, *args, **more)
            if self.name.startswith(".fpsgen-") and self.suffix == suffix:
                raise OSError(28, "No space left on device")
            return written

        return write

    for name in ("write_text", "write_bytes"):
        monkeypatch.setattr(Path, name, full(getattr(Path, name)))
