"""What training won back, from a record of the training benchmark that is made up."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.training.page import document, recovered


def record(seconds: int | None = 5000) -> dict[str, Any]:
    def row(column: str, error: float, apart: float, network: float) -> dict[str, Any]:
        own = {"error": [error, error + 0.02], "apart": [apart, apart], "network": [network, network]}
        return {"plan": "top", "column": column, "cost": 0.07, "templates": [1.0, 1.0], **own}

    dense = {"error": [0.0, 0.0], "apart": [0.0, 0.0], "network": [1.0, 1.0], "templates": [1.0, 1.0]}
    rows = [row("training-free", 0.09, 8.0, 0.5), row("distillation", 0.01, 10.0, 1.0)]
    return {"prompts": ["a", "b"], "clips": 9, "steps": 3, "batch": 2, "command": ["python", "-m", "x"],
            "seconds": seconds, "dense": dense, "rows": rows}  # fmt: skip


def test_what_is_won_back_is_a_share_of_what_was_lost() -> None:
    shares = {name: recovered(record(), "top", "distillation", name) for name in ("error", "apart", "network")}
    assert shares == pytest.approx({"error": 0.8, "apart": -0.25, "network": 1.0})
    assert recovered(record(), "top", "distillation", "templates") is None  # nothing was lost


def test_the_page_tells_it() -> None:
    page = document(record())
    assert "in 83 minutes" in page
    assert "minutes" not in document(record(None))
    won = next(line for line in page.splitlines() if "80%" in line)
    assert [cell.strip() for cell in won.strip("| ").split("|")] == [
        "top", "distillation", "80%", "-25%", "100%", "nothing lost",
    ]  # fmt: skip
