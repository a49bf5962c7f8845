"""What tests of attention share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fpsgen.attention import flex


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of 16 rows, since uncompiled FlexAttention has all scores in memory."""
    kept = flex.padded_rows, flex.block_mask, flex.is_token
    monkeypatch.setattr(flex, "_BLOCK", 16)
    for function in kept:
        function.cache_clear()
    yield
    for function in kept:
        function.cache_clear()
