"""Wan2.1's VAE: a causal 3-D convolutional network that goes through a clip piece by piece.

Parameters have the names of diffusers' AutoencoderKLWan, and so have the settings; tests hold both directions equal to
it, but for the order of sums. The structure is the original's (`wan/modules/vae.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# By layer, what it has to remember of the pieces before: its last inputs, or None where it began with this piece; in
# diffusers' VAE, by half, the list of all that. A clip has a memory of its own, which begins empty.
Memory = dict[nn.Module, Any]


class Autoencoder(nn.Module):
    """What both of Wan's VAEs say of themselves: all weights are on one device, in one dtype."""

    post_quant_conv: nn.Conv3d

    @property
    def device(self) -> torch.device:
        return self.post_quant_conv.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.post_quant_conv.weight.dtype


class WanVAE(Autoencoder):
    """Latents are [1, z_dim, T, h, w], the VAE's own, neither shifted nor scaled. config: a checkpoint's, with
    diffusers' names for the settings; what it does not say is Wan2.1's."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width, z_dim = config.get("base_dim", 96), config.get("z_dim", 16)
        factors, depth = config.get("dim_mult", (1, 2, 4, 4)), config.get("num_res_blocks", 2)
        halved = config.get("temperal_downsample", (False, True, True))  # diffusers' spelling
        self.latents_mean, self.latents_std = (config.get(f"latents_{name}", own) for name, own in _MOMENTS.items())
        self.encoder = _Encoder(width, 2 * z_dim, factors, depth, halved)
        self.quant_conv = CausalConv(2 * z_dim, 2 * z_dim, 1)
        self.post_quant_conv = CausalConv(z_dim, z_dim, 1)
        self.decoder = _Decoder(config.get("decoder_base_dim") or width, z_dim, factors, depth, halved[::-1])

    def encode_piece(self, frames: Tensor, memory: Memory) -> Tensor:
        """A clip's next frames, 1 and then 4 at a time, [1, 3, frames, height, width] in [-1, 1], to mean and logarithm
        of the variance of a latent frame, as they are before `quant_conv`, [1, 2 z_dim, 1, h, w]."""
        return self.encoder(frames, memory)

    def decode_piece(self, latents: Tensor, memory: Memory) -> Tensor:
        """A clip's next latent frame after `post_quant_conv`, [1, z_dim, 1, h, w], to frames, 1 and then 4 at a time,
        about in [-1, 1]."""
        return self.decoder(latents, memory)


_MOMENTS = {
    "mean": (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
             0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    "std": (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
            3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
}  # fmt: skip


class CausalConv(nn.Conv3d):
    """A 3-D convolution that keeps height and width and sees no later frame."""

    def __init__(self, dim: int, out_dim: int, size: int | tuple[int, int, int]):
        frames, *_, across = (size, size, size) if isinstance(size, int) else size
        self._before, self._margins = frames - 1, (0, across // 2, across // 2)
        super().__init__(dim, out_dim, size, padding=self._margins)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        if self._before and memory is not None:
            if (before := memory.get(self)) is None:
                before = x.new_zeros(*x.shape[:2], self._before, *x.shape[3:])
            x = torch.cat([before, x], dim=2)
            memory[self] = x[:, :, -self._before :].clone()
        onednn = torch.backends.mkldnn
        if x.device.type == "cpu" and onednn.is_available() and onednn.enabled:  # torch takes a slow way for small ones
            return torch.mkldnn_convolution(x, self.weight, self.bias, self._margins, self.stride, self.dilation, 1)
        return super().forward(x)


class _Norm(nn.Module):
    """Each place's channels brought to one length, √dim, then scaled. places: how many dimensions they have."""

    def __init__(self, dim: int, places: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(dim, *[1] * places))

    def forward(self, x: Tensor) -> Tensor:
        length = x.float().square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
        return (x * (len(self.gamma) ** 0.5 / length)).mul_(self.gamma).to(x.dtype)


class _Residual(nn.Module):
    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.norm1, self.conv1 = _Norm(dim, 3), CausalConv(dim, out_dim, 3)
        self.norm2, self.conv2 = _Norm(out_dim, 3), CausalConv(out_dim, out_dim, 3)
        self.conv_shortcut = nn.Identity() if dim == out_dim else CausalConv(dim, out_dim, 1)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        hidden = self.conv1(_silu(self.norm1(x)), memory)
        return self.conv2(_silu(self.norm2(hidden)), memory) + self.conv_shortcut(x)


class _FrameAttention(nn.Module):
    """Attention of one head among the places of each frame."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm, self.to_qkv, self.proj = _Norm(dim, 2), nn.Conv2d(dim, 3 * dim, 1), nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        frames = _to_frames(x)
        q, k, v = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2).contiguous()[:, None].chunk(3, dim=-1)
        out = functional.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(frames.shape)
        return _to_clip(self.proj(out)) + x


class _Middle(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.resnets = nn.ModuleList(_Residual(dim, dim) for _ in range(2))
        self.attentions = nn.ModuleList([_FrameAttention(dim)])

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, memory)), memory)


class _Down(nn.Module):
    """Half the height and width; with `frames` also half the frames, but for a clip's first, which stays alone."""

    def __init__(self, dim: int, frames: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if frames else None

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = _to_clip(self.resample(_to_frames(x)))
        if self.time_conv is None:
            return x
        before, memory[self] = memory.get(self), x[:, :, -1:].clone()
        return x if before is None else self.time_conv(torch.cat([before, x], dim=2))


class _Up(nn.Module):
    """Twice the height and width; with `frames` also twice the frames, but for a clip's first, which stays alone."""

    def __init__(self, dim: int, frames: bool):
        super().__init__()
        conv = nn.Conv2d(dim, dim // 2, 3, padding=1)
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv)
        self.time_conv = CausalConv(dim, 2 * dim, (3, 1, 1)) if frames else None

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        if self.time_conv is not None:
            if self.time_conv in memory:
                x = self.time_conv(x, memory).unflatten(1, (2, -1)).transpose(1, 2).transpose(2, 3).flatten(2, 3)
            else:
                memory[self.time_conv] = None
        return _to_clip(self.resample(_to_frames(x)))


class _Encoder(nn.Module):
    """Pieces of a clip, 1 frame and then 4 at a time, [1, 3, frames, height, width], to [1, out_dim, 1, h, w]."""

    def __init__(self, width: int, out_dim: int, factors: Sequence[int], depth: int, halved: Sequence[bool]):
        super().__init__()
        widths = [width * factor for factor in (1, *factors)]
        self.conv_in = CausalConv(3, widths[0], 3)
        self.down_blocks = nn.ModuleList()
        for level, (dim, out) in enumerate(pairwise(widths)):
            self.down_blocks += [_Residual(dim if number == 0 else out, out) for number in range(depth)]
            if level < len(factors) - 1:
                self.down_blocks.append(_Down(out, halved[level]))
        self.mid_block = _Middle(out)
        self.norm_out, self.conv_out = _Norm(out, 3), CausalConv(out, out_dim, 3)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = self.conv_in(x, memory)
        for block in self.down_blocks:
            x = block(x, memory)
        return self.conv_out(_silu(self.norm_out(self.mid_block(x, memory))), memory)


class _UpBlock(nn.Module):
    """frames: whether their number is doubled, too; None where nothing is."""

    def __init__(self, dim: int, out_dim: int, depth: int, frames: bool | None):
        super().__init__()
        self.resnets = nn.ModuleList(_Residual(dim if n == 0 else out_dim, out_dim) for n in range(depth + 1))
        self.upsamplers = nn.ModuleList([] if frames is None else [_Up(out_dim, frames)])

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        for part in (*self.resnets, *self.upsamplers):
            x = part(x, memory)
        return x


class _Decoder(nn.Module):
    """Latent frames [1, z_dim, 1, h, w], one after the other, to 1 frame and then 4 at a time, about in [-1, 1]."""

    def __init__(self, width: int, z_dim: int, factors: Sequence[int], depth: int, doubled: Sequence[bool]):
        super().__init__()
        widths = [width * factor for factor in (factors[-1], *factors[::-1])]
        self.conv_in = CausalConv(z_dim, widths[0], 3)
        self.mid_block = _Middle(widths[0])
        self.up_blocks = nn.ModuleList()
        for level, (dim, out) in enumerate(pairwise(widths)):
            frames = doubled[level] if level < len(factors) - 1 else None
            self.up_blocks.append(_UpBlock(dim if level == 0 else dim // 2, out, depth, frames))
        self.norm_out, self.conv_out = _Norm(out, 3), CausalConv(out, 3, 3)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = self.mid_block(self.conv_in(x, memory), memory)
        for block in self.up_blocks:
            x = block(x, memory)
        return self.conv_out(_silu(self.norm_out(x)), memory)


def _silu(x: Tensor) -> Tensor:
    return functional.silu(x, inplace=True)


def _to_frames(clip: Tensor) -> Tensor:
    """[1, channels, frames, height, width] to [frames, channels, height, width]."""
    return clip[0].transpose(0, 1)


def _to_clip(frames: Tensor) -> Tensor:
    """And back."""
    return frames.transpose(0, 1)[None]
