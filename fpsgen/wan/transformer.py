"""The Wan2.1 diffusion transformer.

Module and parameter names are the original's (Wan2.1 `wan/modules/model.py`). Its precision is kept, too:
the residual stream, norms, modulation and the time path are float32; matrix products run in the dtype of
the weights. What is ours: tokens are put in tile order once, at patchify, and stay so through all blocks;
cross-attention keys and values are computed once per prompt; self-attention goes through
`fpsgen.attention.door.attend`; linear layers of a block may be in 8 bits (`fpsgen.wan.linear`); what
is between them is in `fpsgen.wan.elementwise`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpsgen.attention import dense
from fpsgen.attention.door import attend
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.qk import QKTransform
from fpsgen.attention.quantize import Quantized
from fpsgen.attention.tiles import Shape3, TileGrid, kept
from fpsgen.wan import elementwise
from fpsgen.wan import plan as plans
from fpsgen.wan.config import WanConfig
from fpsgen.wan.linear import Linear, Rounded
from fpsgen.wan.parallel import Attend, SequenceParallel
from fpsgen.wan.plan import UNROUNDED, LinearPrecision, Linears, StepPlan

_FINGERPRINTED = 256  # values of a parameter, or a few more

# The parts of a block whose linear layers may be in 8 bits, and the fields of `Linears` that say so.
_GROUPS = {"self_attn": "attention", "ffn": "ffn"}

# Keys and values of one layer's cross-attention, [batch, text tokens, heads, head_dim] each, and perhaps those of an
# image encoder's states after them.
KeyValue = tuple[Tensor, ...]

# Parts of a parameter's name that keep it float32 whatever the dtype of the matrix products.
FLOAT32_PARAMETERS = frozenset(
    {"modulation", "norm3", "norm_q", "norm_k", "norm_k_img", "img_emb", "time_embedding", "time_projection", "head"}
)


class WanTransformer(nn.Module):
    """Predicts the velocity of latents at a timestep, given a prompt."""

    def __init__(self, config: WanConfig):
        super().__init__()
        dim = config.dim
        self.config = config
        self.patch_embedding = nn.Conv3d(config.in_channels, dim, config.PATCH, config.PATCH)
        self.text_embedding = nn.Sequential(nn.Linear(config.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        if config.image_dim is not None:
            self.img_emb = ImageEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.sequence: SequenceParallel | None = None  # with which other GPUs it shares the tokens of a pass
        self.streamed: Iterable[Block] | None = None  # the same blocks, which are here only while they compute
        self._samples: dict[str, Tensor] = {}  # of parameters without values

    def layers(self) -> Iterator[Block]:
        """The blocks in order, with their type; each has its values until the next one is asked for."""
        return iter(self.streamed) if self.streamed is not None else cast("Iterator[Block]", iter(self.blocks))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix products."""
        return self.patch_embedding.weight.dtype

    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell these weights from others: of values spread over every parameter, as
        bfloat16, so that it is the same in either format and at any dtype."""
        told = hashlib.sha256()
        for name, parameter in sorted(self.named_parameters()):
            some = self._samples[name] if name in self._samples else _sample(parameter)
            told.update(name.encode() + some.view(torch.int16).numpy().tobytes())
        return told.hexdigest()[:16]

    def remember(self, number: int) -> None:
        """Keep of a block what `fingerprint` needs of it, because its values will not stay."""
        for name, parameter in self.blocks[number].named_parameters(f"blocks.{number}"):
            if not parameter.is_meta:
                self._samples[name] = _sample(parameter)

    def hold(self, name: str, value: Tensor, steps: Sequence[StepPlan]) -> Tensor:
        """What is kept as a parameter, given its value: if `steps` are all that it will ever compute, the weight of a
        linear layer is rounded for them, and one that is 8-bit in all of them needs no other values."""
        linear = self.linear(name)
        if not steps or linear is None:
            return value
        precisions = _precisions(name, steps)
        if "16bit" not in precisions:
            self._samples[name] = _sample(value)
        return linear.hold(value, precisions)

    def hold_8_bits(self, name: str, weight: Quantized, dtype: torch.dtype, steps: Sequence[StepPlan]) -> Tensor:
        """`hold` for the weight of a `linear` layer that is in 8 bits in its file, and stays so. dtype: of other
        products."""
        linear = self.linear(name)
        assert linear is not None
        self._samples[name] = _sample_8_bits(weight, dtype)
        return linear.hold_8_bits(weight, dtype, _precisions(name, steps) if steps else {"16bit"})

    def linear(self, name: str) -> Linear | None:
        """The layer whose weight a parameter is, if its products may be in 8 bits."""
        owner, _, kind = name.rpartition(".")
        layer = self.get_submodule(owner)
        return layer if kind == "weight" and isinstance(layer, Linear) else None

    def embed_text(self, text: Tensor) -> list[KeyValue]:
        """Cross-attention keys and values per layer, from text [batch, length, text_dim].

        They depend on nothing but the prompt. Padding rows take part, unmasked, as in the original.
        """
        embedded = self.text_embedding(text.to(self.dtype))
        return [block.cross_attn.key_value(embedded) for block in self.layers()]

    def embed_image(self, states: Tensor) -> list[KeyValue]:
        """Cross-attention keys and values per layer, from an image encoder's states, float32 [1, length, image_dim]; of
        a first and a last image one after the other. They stand behind those of the text."""
        embedded = self.img_emb(states).to(self.dtype)
        return [block.cross_attn.key_value_of_image(embedded) for block in self.layers()]

    def forward(
        self, latents: Tensor, timestep: Tensor, context: Sequence[KeyValue], plan: StepPlan | None = None
    ) -> Tensor:
        """Velocity of `latents` [batch, channels, frames, height, width], in float32.

        timestep: [batch], 0 to 1000, on any device; or [batch, 2], of the first latent frame and of all others
        (Wan2.2's 5B). context: from `embed_text`, batch 1 or that of the latents. plan: what each layer computes;
        dense attention when left out.
        """
        frames, height, width = latents.shape[2:]
        grid = self.config.grid((frames, height, width))
        plan = plan or plans.dense(TileGrid.cut(grid), len(self.blocks))
        waves = sinusoid(timestep, self.config.freq_dim).to(latents.device)
        return self.compute(latents, waves, context, plan)

    def compute(self, latents: Tensor, waves: Tensor, context: Sequence[KeyValue], plan: StepPlan) -> Tensor:
        """`forward` of timesteps as `sinusoid` has them, all tensors on one device. What the plan needs there is made
        the first time; after that nothing is copied from the host, and nothing waits, unless attention does."""
        tiles, sequence = plan.tiles, self.sequence
        rows, own = (slice(None), attend) if sequence is None else (sequence.rows(tiles), sequence.attend)
        with torch.autocast(latents.device.type, enabled=False):  # which training uses
            time = self.time_embedding(waves)  # [batch, dim], or [batch, 2, dim]
            modulation = self.time_projection(time).unflatten(-1, (6, -1))
        later = None if time.ndim == 2 else after_first_frame(tiles, latents.device)[rows]
        x = self.patchify(latents, tiles, rows)
        rope = rope_in_tile_order(tiles, self.config.head_dim, latents.device)[rows]
        for block, key_value, (attention, linear) in zip(self.layers(), context, plan.layers, strict=True):
            x = block(x, modulation, key_value, rope, attention, linear, later, own)
        patches = self.head(x, time, later)
        return self.unpatchify(patches if sequence is None else sequence.gathered(patches, tiles), tiles)

    def patchify(self, latents: Tensor, tiles: TileGrid, rows: slice = slice(None)) -> Tensor:
        """Latents to float32 tokens [batch, tokens, dim], in tile order; of these the `rows` that are given."""
        _, ph, pw = self.config.PATCH
        patches = latents.unfold(3, ph, ph).unfold(4, pw, pw)  # [batch, C, T, H, W, ph, pw]
        patches = patches.permute(0, 2, 3, 4, 1, 5, 6).flatten(4).flatten(1, 3)
        patches = patches[:, orders(tiles, latents.device)[0][rows]]
        weight = self.patch_embedding.weight.flatten(1)
        return F.linear(patches.to(self.dtype), weight, self.patch_embedding.bias).float()

    def unpatchify(self, tokens: Tensor, tiles: TileGrid) -> Tensor:
        """Tokens [batch, tokens, ph * pw * channels] in tile order, back to latents."""
        _, ph, pw = self.config.PATCH
        tokens = tokens[:, orders(tiles, tokens.device)[1]].unflatten(1, tiles.grid)
        tokens = tokens.unflatten(4, (ph, pw, self.config.out_channels))
        return tokens.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


def _precisions(name: str, steps: Sequence[StepPlan]) -> set[LinearPrecision]:
    """Those of a linear layer's products in `steps`. name: of its weight."""
    _, number, part, *_ = name.split(".")
    group = _GROUPS.get(part)
    return {getattr(step.layers[int(number)][1], group) for step in steps} if group else {"16bit"}


def _sample(parameter: Tensor) -> Tensor:
    """A few values, for fingerprints."""
    values = parameter.detach().flatten()
    return values[:: max(1, len(values) // _FINGERPRINTED)].bfloat16().cpu()


def _sample_8_bits(weight: Quantized, dtype: torch.dtype) -> Tensor:
    """`_sample` of the values that 8-bit numbers are expanded to."""
    numbers, step = weight.numbers.flatten(), max(1, weight.numbers.numel() // _FINGERPRINTED)
    rows = torch.arange(0, len(numbers), step, device=numbers.device) // weight.numbers.shape[1]
    return (numbers[::step].float() * weight.scale.flatten()[rows]).to(dtype).bfloat16().cpu()


class Block(nn.Module):
    """Self-attention and FFN, both modulated by time, with cross-attention to the prompt between them."""

    def __init__(self, config: WanConfig):
        super().__init__()
        dim, eps = config.dim, config.eps
        self.norm1 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(dim, eps)  # the original counts it third, though it runs second
        self.cross_attn = CrossAttention(config)
        self.norm2 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = FFN(config)
        self.modulation = modulation(6, dim)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        key_value: KeyValue,
        rope: Tensor,
        plan: AttentionPlan,
        linear: Linears = UNROUNDED,
        later: Tensor | None = None,
        attend: Attend = attend,
    ) -> Tensor:
        """x: float32 [batch, tokens, dim]; modulation, by time: float32 [batch, 6, dim], or [batch, 2, 6, dim] where
        the first latent frame has a time of its own; later: from `after_first_frame` then."""
        dtype = self.cross_attn.q.weight.dtype
        shift, scale, gate, *of_ffn = (self.modulation + modulation).chunk(6, dim=-2)
        ours = linear != UNROUNDED and later is None  # the kernels read one row of modulation for all tokens
        own = partial(of_tokens, later=later)  # of one or two vectors at a time: those of all tokens are large
        given = elementwise.norm(x, self.norm1, dtype, (own(shift), own(scale)), linear.attention, ours)
        made = self.self_attn(given, rope, plan, linear.attention, attend)
        x, given = elementwise.add_and_norm(x, made, own(gate), self.norm3, dtype, ours=ours)
        made = self.cross_attn(given, key_value)
        shift, scale, gate = of_ffn
        modulated = own(shift), own(scale)
        x, given = elementwise.add_and_norm(x, made, None, self.norm2, dtype, modulated, linear.ffn, ours)
        del modulated
        return elementwise.add(x, self.ffn(given, linear.ffn), own(gate), ours)


class FFN(nn.Sequential):
    """Two linear layers with GELU between them, by the original's numbers."""

    def __init__(self, config: WanConfig):
        super().__init__(Linear(config.dim, config.ffn_dim), nn.GELU("tanh"), Linear(config.ffn_dim, config.dim))

    def forward(self, x: Tensor | Rounded, precision: LinearPrecision = "16bit") -> Tensor:
        up, _, down = self
        return down(elementwise.gelu(up(elementwise.rounded(x, precision)), precision))


class Attention(nn.Module):
    """Projections and qk-norm weights that self- and cross-attention have in common."""

    def __init__(self, config: WanConfig):
        super().__init__()
        dim = config.dim
        self.heads, self.eps = config.num_heads, config.eps
        self.q, self.k, self.v, self.o = (Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(dim, config.eps) for _ in range(2))

    def split(self, x: Tensor) -> Tensor:
        """[batch, tokens, dim] to [batch, tokens, heads, head_dim]."""
        return x.unflatten(2, (self.heads, -1))


class SelfAttention(Attention):
    def __init__(self, config: WanConfig):
        super().__init__(config)
        self.gate_compress = Linear(config.dim, config.dim) if config.gated else None

    def forward(
        self, x: Tensor | Rounded, rope: Tensor, plan: AttentionPlan, precision: LinearPrecision, attend: Attend
    ) -> Tensor:
        transform = QKTransform(self.norm_q.weight, self.norm_k.weight, self.eps, rope)
        given = elementwise.rounded(x, precision)
        q, k, v = (self.split(layer(given)) for layer in (self.q, self.k, self.v))
        gate = None if self.gate_compress is None else self.split(self.gate_compress(given))
        return self.o(elementwise.rounded(attend(q, k, v, transform, plan, gate).flatten(2), precision))


class ImageEmbedding(nn.Module):
    """From an image encoder's states to the width of the transformer (Wan2.1 `wan/modules/model.py`, `MLPProj`)."""

    def __init__(self, config: WanConfig):
        super().__init__()
        width, dim = config.image_dim or 0, config.dim
        norms = nn.LayerNorm(width), nn.LayerNorm(dim)
        self.proj = nn.Sequential(norms[0], nn.Linear(width, width), nn.GELU(), nn.Linear(width, dim), norms[1])
        self.emb_pos = nn.Parameter(torch.empty(1, config.image_positions, width)) if config.image_positions else None

    def forward(self, states: Tensor) -> Tensor:
        """float32 states [1, length, image_dim] to float32 [1, length, dim]."""
        return self.proj(states if self.emb_pos is None else states + self.emb_pos)


class CrossAttention(Attention):
    def __init__(self, config: WanConfig):
        super().__init__(config)
        if config.image_dim is not None:
            self.k_img, self.v_img = (Linear(config.dim, config.dim) for _ in range(2))
            self.norm_k_img = nn.RMSNorm(config.dim, config.eps)

    def key_value_of_image(self, states: Tensor) -> KeyValue:
        """The same of embedded states of an image."""
        key, value = self.k_img(states), self.v_img(states)
        return self.split(self.norm_k_img(key.float()).to(value.dtype)), self.split(value)

    def key_value(self, text: Tensor) -> KeyValue:
        """Keys, normed over all heads, and values of embedded text [batch, length, dim]."""
        key, value = self.k(text), self.v(text)
        return self.split(self.norm_k(key.float()).to(value.dtype)), self.split(value)

    def forward(self, x: Tensor, key_value: KeyValue) -> Tensor:
        """x: [batch, tokens, dim]; keys and values of batch 1 serve all of them. What is seen in an image is added to
        what is read in the text."""
        key, value, *of_image = (t.expand(len(x), -1, -1, -1) for t in key_value)
        query = self.split(self.norm_q(self.q(x).float()).to(value.dtype))
        seen = dense.attention(query, key, value)
        if of_image:
            key, value = of_image
            seen = seen + dense.attention(query, key, value)
        return self.o(seen.flatten(2))


class Head(nn.Module):
    """Last norm, modulated by the un-projected time embedding, and the projection to patches."""

    def __init__(self, config: WanConfig):
        super().__init__()
        _, ph, pw = config.PATCH
        self.norm = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, ph * pw * config.out_channels)
        self.modulation = modulation(2, config.dim)

    def forward(self, x: Tensor, time: Tensor, later: Tensor | None = None) -> Tensor:
        """x: float32 [batch, tokens, dim]; time: float32 [batch, dim], or [batch, 2, dim]; later: as a block's."""
        shift, scale = (self.modulation + time[..., None, :]).chunk(2, dim=-2)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(self.norm(x) * (1 + of_tokens(scale, later)) + of_tokens(shift, later)).float()


def sinusoid(timestep: Tensor, dim: int) -> Tensor:
    """float32 [batch, dim] embedding of timesteps [batch], or [batch, 2, dim] of [batch, 2]; cosines first
    (`sinusoidal_embedding_1d`, in float64)."""
    half = dim // 2
    rates = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    angles = timestep.double()[..., None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


def of_tokens(modulation: Tensor, later: Tensor | None) -> Tensor:
    """A vector of all tokens, float32 [batch, 1, dim], as it is; or, of two, [batch, 2, 1, dim], each token's own,
    [batch, tokens, dim]. later: from `after_first_frame`."""
    return modulation if later is None else modulation[:, later, 0]


@kept(1)
def after_first_frame(tiles: TileGrid, device: torch.device) -> Tensor:
    """Of each token in tile order 0 in the first latent frame, else 1: int64 [tokens]."""
    _, height, width = tiles.grid
    return (tiles.inverse >= height * width).long().to(device)


@kept(4)
def orders(tiles: TileGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """`tiles.inverse` and `tiles.order` on a device."""
    return tiles.inverse.to(device), tiles.order.to(device)


@kept(1)  # a table of 75,600 tokens has 39 MB
def rope_in_tile_order(tiles: TileGrid, head_dim: int, device: torch.device) -> Tensor:
    """`rope_table` of a model's tokens, on a device."""
    return rope_table(tiles.grid, head_dim, WanConfig.ROPE_THETA)[tiles.inverse].to(device)


def rope_table(grid: Shape3, head_dim: int, theta: float) -> Tensor:
    """float32 [tokens, head_dim / 2, 2]: cosine and sine per token in raster order (`rope_params`).

    A head's pairs are shared out over time, height and width: 22 + 21 + 21 for head_dim 128. Angles are
    computed in float64, as in the original.
    """
    pairs = head_dim // 2
    spatial = head_dim // 6
    angles = []
    for axis, count in enumerate((pairs - 2 * spatial, spatial, spatial)):
        rates = theta ** (-torch.arange(count, dtype=torch.float64) / count)
        shape = [1, 1, 1, count]
        shape[axis] = grid[axis]
        along = torch.arange(grid[axis], dtype=torch.float64)[:, None] * rates
        angles.append(along.view(shape).expand(*grid, count))
    table = torch.cat(angles, dim=-1).flatten(0, 2)
    return torch.stack([table.cos(), table.sin()], dim=-1).float()


def modulation(count: int, dim: int) -> nn.Parameter:
    """Of a layer, to be trained from small numbers, which come from `nn.init` like others: see `weights.load`."""
    return nn.Parameter(nn.init.normal_(torch.empty(1, count, dim), std=dim**-0.5))
