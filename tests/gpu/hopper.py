"""What both files of tests on a Hopper card share."""

from __future__ import annotations

import pytest
import torch


def another_card() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0)


def tell(capsys: pytest.CaptureFixture[str], what: object) -> None:
    """Say something though the test passes: how large an error is, is news even where it is small."""
    with capsys.disabled():
        print(f" {what}", end="", flush=True)
