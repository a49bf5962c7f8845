"""What one self-attention layer computes at one denoising step."""

from __future__ import annotations

from dataclasses import dataclass

from fpsgen.attention.tiles import TileGrid


@dataclass(frozen=True)
class AttentionPlan:
    """Dense attention over tokens in the order of `tiles`."""

    tiles: TileGrid
