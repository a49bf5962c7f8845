"""The parts of a video's work: operations and bytes, counted in the modules that do it.

Products of matrices take 2 operations for each pair of numbers that they multiply. Bytes are counted three times: as
PyTorch moves them, where each operation reads what it is given and writes what it returns; at least, where each part is
one pass that reads every input once and writes every output once; and as `kernels_cuda/sm90_elementwise.cu` moves them,
which has a norm in one pass with the sum before it. Caches keep nothing between two operations: at 720p a tensor of all
tokens has 0.8 GB. Of what does not grow with the tokens, weights alone are counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import Shape3, TileGrid
from fpsgen.wan.config import WanConfig
from fpsgen.wan.tokenizer import TEXT_LENGTH
from fpsgen.weights.configs import TEXT_CONFIG, VAE_CONFIG

# What decides how fast a part is. "norm and RoPE" is done by the prologue where attention is in 8 bits; there is
# "rounding" where linear products are.
Kind = Literal["self-attention", "cross-attention", "linear", "rounding", "norm and RoPE", "elementwise", "convolution"]
Of = Literal["", "attention", "ffn"]


@dataclass(frozen=True)
class Part:
    """flops: of products. moved_bytes: by PyTorch; least_bytes: at least; fused_bytes: with our elementwise kernels,
    below 0 for what the pass before no longer writes. of: the field of `Linears` that has the precision; empty where it
    is always 16 bits."""

    name: str
    kind: Kind
    flops: float
    moved_bytes: float
    least_bytes: float
    fused_bytes: float
    of: Of = ""


# Bytes for each channel of a token, as PyTorch moves them, operation by operation; at least; and with our elementwise
# kernels. Norms and the residual stream are float32; products take and give 16 bits (`wan/transformer.py`).
Bytes = tuple[float, float, float]
_MODULATED_NORM = (4 + 4) + (4 + 4) + (4 + 4) + (4 + 2), 4 + 2, 4 + 2  # norm; times 1 + scale; plus shift; to 16 bits
_MODULATED_NORM_OF_A_SUM = *_MODULATED_NORM[:2], 2  # the sum is there: the same kernel made it
_GATED_RESIDUAL = (2 + 4) + (4 + 4 + 4), 2 + 4 + 4, 2 + 4 + 4  # times gate; added
_NORM_OF_A_SUM = (4 + 4) + (4 + 2), 4 + 2, 2  # to 16 bits
_NORM_Q = (2 + 4) + (4 + 4) + (4 + 2), 2 + 2, (2 + 4) + (4 + 4) + (4 + 2)  # to float32; norm; back. By PyTorch
_RESIDUAL = 2 + 4 + 4, 2 + 4 + 4, 2 + 4 + 4
_GELU = 2 + 2, 2 + 2, 2 + 2
# `attention/qk.py`: to float32; norm; four products of half of the channels; their difference and sum; both halves into
# one tensor; to 16 bits. By PyTorch where attention is not in 8 bits.
_ROTATED = (2 + 4) + (4 + 4) + 4 * (2 + 2) + 2 * (2 + 2 + 2) + (4 + 4) + (4 + 2)
_NORM_AND_ROPE = _ROTATED, 2 + 2, _ROTATED
# `wan/linear.py`: absolute values; the largest of each row; divided, in float32; clamped; to 8 bits. At least nothing,
# where the pass before can write 8 bits instead of 16; our kernels do, which saves a byte. Attention cannot: its kernel
# sees one head of a row.
_ROUNDING = (2 + 2) + 2 + (2 + 4) + (4 + 4) + (4 + 1), 0, -1
_ROUNDING_OF_ATTENTION = _ROUNDING[0], 2 + 1, 2 + 1


def forward_pass(config: WanConfig, tiles: TileGrid) -> list[Part]:
    """The transformer's, of one guidance branch."""
    tokens, layers, dim, ffn = tiles.tokens, config.num_layers, config.dim, config.ffn_dim

    def passes(name: str, *each: Bytes, wide: Bytes = (0, 0, 0), kind: Kind = "elementwise", of: Of = "") -> Part:
        """wide: over the FFN's channels."""
        moved = (layers * tokens * (dim * sum(own[one] for own in each) + ffn * wide[one]) for one in range(3))
        return Part(name, kind, 0, *moved, of)

    def products(name: str, of: Of, *shapes: tuple[int, int]) -> Part:
        return replace(_products(name, layers, tokens, *shapes), of=of)

    def attention(kind: Kind, keys: int) -> Part:
        whole = AttentionPlan(tiles).flops(config.num_heads, config.head_dim)  # of all pairs of tokens
        moved = layers * 2 * dim * (2 * tokens + 2 * keys)
        return Part(kind, kind, layers * whole * keys / tokens, moved, moved, moved)

    square = (dim, dim)
    return [
        passes("modulated LayerNorm, twice", _MODULATED_NORM, _MODULATED_NORM_OF_A_SUM),
        products("q, k, v, o", "attention", *[square] * 4),
        passes("norm and RoPE of q, k", _NORM_AND_ROPE, _NORM_AND_ROPE, kind="norm and RoPE"),
        attention("self-attention", tokens),
        passes("gated residual, twice", _GATED_RESIDUAL, _GATED_RESIDUAL),
        passes("cross-attention: norms, residual", _NORM_OF_A_SUM, _NORM_Q, _RESIDUAL),
        products("cross-attention: q, o", "", square, square),
        attention("cross-attention", TEXT_LENGTH),
        products("FFN", "ffn", (dim, ffn), (ffn, dim)),
        passes("GELU", wide=_GELU),
        passes("rounding for q, k, v, o", _ROUNDING, _ROUNDING_OF_ATTENTION, kind="rounding", of="attention"),
        passes("rounding for FFN", _ROUNDING, wide=_ROUNDING, kind="rounding", of="ffn"),
        _ends(config, tokens),
    ]


def launches(config: WanConfig) -> int:
    """How many kernels PyTorch launches on a GPU in a forward pass in 16 bits: in each layer, and at both ends."""
    return 52 * config.num_layers + 18


def _ends(config: WanConfig, tokens: int) -> Part:
    """Patches to tokens and back: copied, put into tile order, rounded, and the tokens made float32; the last norm,
    scale, shift and product, in float32; put into raster order and into place. And the time embedding's weights."""
    dim, patch = config.dim, prod(config.PATCH) * config.in_channels
    time = dim * (config.freq_dim + 7 * dim)
    of_patch = (4 + 4) + (4 + 4) + (4 + 2) + 2 + 4 + 2 * (4 + 4)
    of_token = 2 + (2 + 4) + 3 * (4 + 4) + 4
    flops = 2 * 2 * tokens * patch * dim + 2 * time
    moved, least = tokens * (patch * of_patch + dim * of_token), 2 * 4 * tokens * (patch + dim)
    moved, least = moved + 4 * time, least + 4 * time
    return Part("patches, time, head", "elementwise", flops, moved, least, moved)


def _products(name: str, times: int, rows: int, *shapes: tuple[int, int]) -> Part:
    """Of `rows` rows and a matrix of each shape, in 16 bits."""
    flops = times * sum(2 * rows * a * b for a, b in shapes)
    moved = times * sum(2 * (rows * (a + b) + a * b) for a, b in shapes)
    return Part(name, "linear", flops, moved, moved, moved)


def text(config: WanConfig, prompts: int) -> list[Part]:
    """Once in a video, of prompts that are as long as they may be."""
    wide, inner, layers = TEXT_CONFIG["d_model"], TEXT_CONFIG["d_ff"], TEXT_CONFIG["num_layers"]
    heads, square = TEXT_CONFIG["num_heads"] * TEXT_CONFIG["d_kv"], (config.dim, config.dim)
    shapes = [(wide, heads)] * 3 + [(heads, wide)] + [(wide, inner)] * 2 + [(inner, wide)]
    encoder = _products("text encoder", prompts * layers, TEXT_LENGTH, *shapes)
    encoder = replace(encoder, flops=encoder.flops + prompts * layers * 4 * heads * TEXT_LENGTH**2)
    shapes = [(config.text_dim, config.dim), *[square] * (1 + 2 * config.num_layers)]
    return [encoder, _products("cross-attention: k, v", prompts, TEXT_LENGTH, *shapes)]


def decode(latent_shape: Shape3, base: int = VAE_CONFIG["base_dim"], latents: int = VAE_CONFIG["z_dim"]) -> list[Part]:
    """The VAE's decoder (`fpsgen.wan.autoencoder`) in float32, one latent frame at a time."""
    frames, height, width = latent_shape
    doubled = (frames, 2 * frames - 1, 4 * frames - 3, 4 * frames - 3)  # at each level; the first frame stays alone
    positions = [count * height * width * 4**level for level, count in enumerate(doubled)]
    given, wide = (4 * base, 2 * base, 2 * base, base), (4 * base, 4 * base, 2 * base, base)
    # Channels in and out, taps, positions; of how many frames at once, where two of the piece before are put before
    # them, and two are kept; whether a norm and SiLU come first. In the middle is attention over each frame.
    convolutions = [(latents, latents, 1, positions[0], 0, False), (latents, wide[0], 27, positions[0], 1, False)]
    convolutions += [(wide[0], 4 * wide[0], 1, positions[0], 0, False)]
    flops, moved = 4.0 * wide[0] * positions[0] * height * width, 0.0
    for level, at_once in enumerate((1, 2, 4, 4)):
        own, channels, blocks = positions[level], wide[level], 5 if level == 0 else 3  # two of five in the middle
        convolutions += [(given[level], channels, 27, own, at_once, True)]
        convolutions += [(channels, channels, 27, own, at_once, True)] * (2 * blocks - 1)
        moved += blocks * channels * own * (4 + 4 + 4)  # added to what the block was given
        if given[level] != channels:
            convolutions += [(given[level], channels, 1, own, 0, False)]
        if level < 2:  # twice the frames
            convolutions += [(channels, 2 * channels, 3, own - height * width * 4**level, at_once, False)]
        if level < 3:  # twice as high and wide, each frame alone
            convolutions += [(channels, channels // 2, 9, positions[level + 1], 0, False)]
            moved += channels * positions[level + 1] * (1 + 4 + 4 + 4)
    convolutions += [(base, 3, 27, positions[3], 4, True)]
    convolved = least = 0.0
    for one, other, taps, own, at_once, normed in convolutions:
        more = 2 / at_once if at_once else 0  # for each position
        flops += 2 * one * other * taps * own
        least += 4 * (one + other) * own
        convolved += 4 * (one * (1 + more) + other) * own
        moved += one * own * (normed * (4 + 4 * (4 + 4)) + ((4 + 4) * (1 + 2 * more) if at_once else 0))
        moved += own * normed * 4 * 8  # a position's length
    return [
        Part("VAE decoder: convolutions", "convolution", flops, convolved, least, convolved),
        Part("VAE decoder: the rest", "elementwise", 0, moved, 0, moved),
    ]
