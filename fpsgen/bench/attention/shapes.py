"""What `fpsgen bench attention` runs: shapes of Wan2.1's self-attention, the work that is in them, windows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

from fpsgen.attention.emulator import VARIANTS
from fpsgen.attention.plan import AttentionPlan, KeyTiles, Rest, Seen, fit
from fpsgen.attention.select import SUMMARY_KEYS
from fpsgen.attention.tiles import Shape3, TileGrid
from fpsgen.bench.roofline import Amounts
from fpsgen.kernels.sm90_attention import SLOTS, TRAILER_BYTES
from fpsgen.kernels.sm90_prologue import VARIANTS as PROLOGUES
from fpsgen.settings import DEFAULTS
from fpsgen.wan.config import SHAPES, WAN_14B
from fpsgen.wan.sizes import check_model_size, parse_resolution

HEAD_DIM = WAN_14B.head_dim  # and of 1.3B
DENSITIES = ("1", "1/2", "1/4", "1/6", "1/10")


@dataclass(frozen=True)
class Shape:
    """One layer's self-attention, one batch entry; what work is in it."""

    model: str
    res: str
    tiles: TileGrid
    heads: int

    def __str__(self) -> str:
        return f"{self.model} {self.res}"

    @property
    def facts(self) -> dict[str, Any]:
        """For a `record.Case`."""
        tiles = self.tiles
        sizes = {"grid": tiles.grid, "tile": tiles.tile, "tokens": tiles.tokens, "tiles": len(tiles.valid)}
        return {"model": self.model, "res": self.res, **sizes, "heads": self.heads, "head_dim": HEAD_DIM}

    def attention(self, plan: AttentionPlan, variant: str | None = None) -> Amounts:
        """The work of attention itself: in 16 bits q, k, v in and the result out; or that of a variant of our kernel,
        images in and the result out.

        A pair of tokens has one exponential for each head, or none where the variant synthesises them. Each tile of k
        and v is in some list, so that sparsity saves no bytes. Lists are too short to count, even those that are chosen
        by content.
        """
        flops = plan.flops(self.heads, HEAD_DIM)
        pairs = flops / (4 * HEAD_DIM)
        if variant is None:
            return Amounts(flops, pairs, 4 * self._activations)
        exponentials = 0 if VARIANTS[variant].synthesise else pairs
        return Amounts(flops, exponentials, self._images(variant) + self._activations)

    def prepare(self) -> Amounts:
        """Norm and RoPE in 16 bits: q and k in and out, the table of RoPE in. Weights of norms are too few to count."""
        return Amounts(0, 0, 4 * self._activations + self._table)

    def prologue(self, variant: str) -> Amounts:
        """Our prologue: q, k, v and RoPE's table in; the images and each tile's mean of q and of k out.

        Its launches read k and RoPE's table twice, because a norm goes over all heads and k's mean over all tokens
        (`sm90_prologue.traffic`): that is the prologue's own, and no bound.
        """
        means = 2 * self.heads * len(self.tiles.valid) * HEAD_DIM * 4
        return Amounts(0, 0, 3 * self._activations + self._table + self._images(variant) + means)

    def choice(self, plan: AttentionPlan) -> Amounts:
        """Choosing key tiles by their content: the mean of each tile of q and of k in, lists and addends of a summary
        out. It uses no tensor core."""
        tiles, own = len(self.tiles.valid), plan.key_tiles[0]
        listed = 0 if own.top is None else own.count(self.tiles)
        summarised = ceil(tiles / SUMMARY_KEYS) * SUMMARY_KEYS if plan.has_summary else 0
        return Amounts(0, 0, 4 * self.heads * tiles * (2 * HEAD_DIM + listed + summarised))

    @property
    def _activations(self) -> int:
        """Bytes of one of q, k, v and the result: 16 bits each."""
        return 2 * self.tiles.tokens * self.heads * HEAD_DIM

    @property
    def _table(self) -> int:
        """Bytes of RoPE's float32 table."""
        return 4 * self.tiles.tokens * HEAD_DIM

    def _images(self, variant: str) -> int:
        """Bytes between prologue and kernel (`hopper.prologue`): for each tile of each head q, k and v with its rows of
        ones, 128 slots of one byte; k's trailer; q's scales, float32; for each channel of a head v's scale."""
        tile = SLOTS * (3 * HEAD_DIM + PROLOGUES[variant].V_ONES) + TRAILER_BYTES + 4 * SLOTS
        return self.heads * (len(self.tiles.valid) * tile + 4 * HEAD_DIM)


# Ragged along H, so that a card's first run meets short tiles, too.
SMOKE = Shape("smoke", "9x14x16", TileGrid.cut((9, 14, 16)), 3)


def shape(model: str, res: str) -> Shape:
    """For a model's default number of frames: the VAE makes 4 of one latent frame, but for the first. UsageError for a
    size that generate would not take."""
    width, height = parse_resolution(res)
    check_model_size(width, height)
    grid = SHAPES[model].grid(((DEFAULTS[model].frames - 1) // 4 + 1, height // 8, width // 8))
    return Shape(model, res, TileGrid.cut(grid), SHAPES[model].num_heads)


def chosen_windows(tiles: TileGrid, wanted: Iterable[str]) -> dict[str, Shape3 | None]:
    """The window that a preset has at each density, written as a fraction; one that two have goes to the first."""
    found: dict[str, Shape3 | None] = {}
    for text in wanted:
        window = tiles.window_of(float(Fraction(text)))
        if window not in found.values():
            found[text] = window
    return found


def chosen_tiles(tiles: TileGrid, densities: Iterable[str], tops: Iterable[str], rest: Rest) -> dict[str, Seen]:
    """What is seen, by what was asked for: windows by their density, then "top" and the share. A share that comes to
    all tiles is left out: it is dense attention."""
    best = {f"top {text}": fit(KeyTiles(top=float(Fraction(text)), rest=rest), tiles) for text in tops}
    return {**chosen_windows(tiles, densities), **{wanted: seen for wanted, seen in best.items() if seen}}


def plan_8bit(tiles: TileGrid, seen: Seen, variant: str) -> AttentionPlan:
    """What a variant of the kernel runs."""
    return AttentionPlan(tiles, (seen,), qk=VARIANTS[variant].qk, pv="fp8")
