"""The pocket VAE: diffusers' AutoencoderKLWan, small, with a whole-clip path for training.

diffusers encodes four frames and decodes one latent frame at a time, carrying a cache of each causal
convolution's last inputs. Over a whole clip the same arithmetic needs no cache: a causal convolution
pads with zeros in front, exactly what an empty cache stands for. Only the two temporal resamplers treat
the first frame apart. One pass is far quicker to differentiate; `tests/` holds it equal to `encode` and
`decode`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_wan as wan
from torch import Tensor

Z_DIM = 16


def build() -> AutoencoderKLWan:
    """Encoder width 12 and decoder width 16 (Wan2.1: 96); compression 4 x 8 x 8 and 16 channels, as Wan2.1."""
    return AutoencoderKLWan(
        base_dim=12,
        decoder_base_dim=16,
        z_dim=Z_DIM,
        dim_mult=[1, 2, 3, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * Z_DIM,
        latents_std=[1.0] * Z_DIM,
    )


def _resample(self: wan.WanResample, x: Tensor, feat_cache: None = None, feat_idx: object = None) -> Tensor:
    batch, channels, frames, height, width = x.shape
    if self.mode == "upsample3d" and frames > 1:  # the first frame stays one, every later one becomes two
        pairs = self.time_conv(x[:, :, 1:]).view(batch, 2, channels, frames - 1, height, width)
        x = torch.cat([x[:, :, :1], pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], dim=2)
        frames = x.shape[2]
    x = self.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, frames)).transpose(1, 2)
    if self.mode == "downsample3d" and frames > 1:
        x = torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)
    return x


def _rms_norm(self: wan.WanRMS_norm, x: Tensor) -> Tensor:
    """F.normalize over channels * sqrt(channels) * gamma, with one pass less."""
    return x * torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-10).to(x.dtype) * self.gamma


@contextmanager
def whole_clip() -> Iterator[None]:
    """Inside, `encode` and `decode` below run each clip in one pass."""
    saved = wan.WanResample.forward, wan.WanRMS_norm.forward
    wan.WanResample.forward, wan.WanRMS_norm.forward = _resample, _rms_norm
    try:
        yield
    finally:
        wan.WanResample.forward, wan.WanRMS_norm.forward = saved


def encode(vae: AutoencoderKLWan, video: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [batch, 16, (frames - 1) / 4 + 1, height / 8, width / 8] of video in [-1, 1]."""
    mean, log_variance = vae.quant_conv(vae.encoder(video)).chunk(2, dim=1)
    return mean, log_variance


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Video [batch, 3, frames, height, width], not clamped; latents as `encode` gives them."""
    return vae.decoder(vae.post_quant_conv(latents))
