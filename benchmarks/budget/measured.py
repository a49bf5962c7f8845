"""What records in benchmarks/results say of a video on a card, beside the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from benchmarks import record
from benchmarks.budget.model import SWITCHES, Card, Video
from fpsgen.bench.attention.record import DENSE


def seconds(card: Card, video: Video) -> dict[str, float]:
    """Of a step's parts, by `fpsgen bench attention`, dense attention by the fastest kernel; and of text, steps and
    decoding of a video, by `fpsgen bench`. Keys are the names that the model has."""
    found, config, settings = {}, video.model.config, video.settings
    lines = [
        line
        for told in _records("**/attention*.json", card)
        for case in told["cases"]
        if (case["tokens"], case["heads"]) == (video.tiles.tokens, config.num_heads)
        for line in case["lines"]
    ]
    for part, kinds in (("self-attention", DENSE), ("norm and RoPE of q, k", ("prepare",))):
        if times := [line["median_ms"] for line in lines if line["kind"] in kinds and line.get("median_ms")]:
            found[part] = settings.branches * config.num_layers * min(times) / 1e3
    wanted = {key: getattr(settings, key) for key in ("width", "height", "frames", "steps")}
    for told in _records("bench-*.json", card):
        if told["model"] == video.model.name and {key: told["video"][key] for key in wanted} == wanted:
            for one in told["contenders"]:
                preset = (one["preset"] or {}).get("name")
                name = SWITCHES["preset"] if preset == video.preset.name else preset or one["name"]
                found[name] = sum(one["median"][stage] for stage in ("text", "denoise", "decode"))
    return found


def _records(pattern: str, card: Card) -> Iterator[dict[str, Any]]:
    """Those of this card, in the order of their names."""
    for path in sorted(record.RESULTS.glob(pattern)):
        told = json.loads(path.read_text(encoding="utf-8"))
        if card.name in (told["card"] or {}).get("gpu", ""):
            yield told
