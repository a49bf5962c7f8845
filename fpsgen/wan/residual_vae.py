"""Wan2.2's VAE of 48 latent channels, by diffusers' AutoencoderKLWan, piece by piece.

diffusers decodes a clip as a whole, whose frames all lie in memory; here its encoder and its decoder are called for one
latent frame after the other, with the caches that it keeps for that, as its own loops do. Whoever loads this module
waits for diffusers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers.models.autoencoders import autoencoder_kl_wan as diffusers_vae
from torch import Tensor, nn

from fpsgen.wan.autoencoder import Autoencoder, Memory


class ResidualVAE(Autoencoder):
    """Latents are [1, z_dim, T, h, w], the VAE's own, neither shifted nor scaled. config: of an AutoencoderKLWan
    with residual blocks, whose parameters' names these are."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        known = inspect.signature(diffusers_vae.AutoencoderKLWan.__init__).parameters
        made = diffusers_vae.AutoencoderKLWan(**{name: value for name, value in config.items() if name in known})
        self.encoder, self.quant_conv = made.encoder, made.quant_conv
        self.post_quant_conv, self.decoder = made.post_quant_conv, made.decoder
        self.latents_mean, self.latents_std = made.config.latents_mean, made.config.latents_std
        self._patch = made.config.patch_size
        self._caches = {
            half: sum(isinstance(one, diffusers_vae.WanCausalConv3d) for one in half.modules())
            for half in (made.encoder, made.decoder)
        }

    def encode_piece(self, frames: Tensor, memory: Memory) -> Tensor:
        """As `WanVAE.encode_piece`."""
        cache, _ = self._cache(self.encoder, memory)
        return self.encoder(diffusers_vae.patchify(frames, self._patch), cache, [0])

    def decode_piece(self, latents: Tensor, memory: Memory) -> Tensor:
        """As `WanVAE.decode_piece`."""
        cache, first = self._cache(self.decoder, memory)
        return diffusers_vae.unpatchify(self.decoder(latents, cache, [0], first_chunk=first), self._patch)

    def _cache(self, half: nn.Module, memory: Memory) -> tuple[list[Any], bool]:
        """What a half keeps of the pieces before, and whether there were none."""
        first = half not in memory
        return memory.setdefault(half, [None] * self._caches[half]), first
