"""Latents to frames and back, one latent frame at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice, product
from math import ceil
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fpsgen import metrics
from fpsgen.errors import RenderError
from fpsgen.wan.autoencoder import Memory, WanVAE
from fpsgen.wan.config import FETCH_AGAIN

if TYPE_CHECKING:
    from fpsgen.wan.residual_vae import ResidualVAE

VAE: TypeAlias = "WanVAE | ResidualVAE"  # Wan2.1's; Wan2.2's of 48 channels
OVERLAP = 8  # latents that neighbouring tiles have in common, at least
ENOUGH = 45.0  # dB between frames of 8 bits: they differ by 1.4 of 255 levels, root mean square


class Moments(Protocol):
    """What the VAE's own latents are shifted and scaled by, for each channel."""

    @property
    def latents_mean(self) -> Sequence[float]: ...
    @property
    def latents_std(self) -> Sequence[float]: ...


def denormalise(vae: Moments, latents: Tensor) -> Tensor:
    """The model's latents (zero mean, unit variance) to the VAE's own."""
    mean, std = _moments(vae, latents.device)
    return latents * std + mean


def normalise(vae: Moments, latents: Tensor) -> Tensor:
    """The VAE's own latents to the model's."""
    mean, std = _moments(vae, latents.device)
    return (latents - mean) / std


def _moments(vae: Moments, device: torch.device) -> Iterator[Tensor]:
    for values in (vae.latents_mean, vae.latents_std):
        yield torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1, 1)


@torch.inference_mode()
def encode(vae: VAE, frames: np.ndarray) -> Tensor:
    """uint8 frames [4 n + 1, height, width, 3] to the model's latents, float32 [1, channels, n + 1, h, w].

    The mode of what the VAE gives. The frames go to the device as they are encoded, 1 first and then 4 for each latent
    frame.
    """
    cuts = ((first, first + (4 if first else 1)) for first in (0, *range(1, len(frames), 4)))
    return encode_pieces(vae, (from_uint8(torch.from_numpy(frames[slice(*cut)]).to(vae.device)) for cut in cuts))


@torch.inference_mode()
def encode_pieces(vae: VAE, pieces: Iterable[Tensor]) -> Tensor:
    """The same of pieces of a clip, 1 frame first and then 4 at a time, [1, 3, frames, height, width] in [-1, 1]."""
    memory: Memory = {}
    encoded = [vae.encode_piece(pixels.to(vae.dtype), memory) for pixels in pieces]
    mode, _ = vae.quant_conv(torch.cat(encoded, 2)).chunk(2, dim=1)
    return normalise(vae, mode.float())


@torch.inference_mode()
def stream(vae: VAE, latents: Tensor) -> Iterator[Tensor]:
    """Decode the VAE's own latents [1, channels, T, h, w] piece by piece: 1 frame first, then 4 for each latent frame.

    Yields [1, 3, frames, height, width] in [-1, 1].
    """
    memory: Memory = {}
    for piece in vae.post_quant_conv(latents.to(vae.dtype)).split(1, dim=2):
        yield vae.decode_piece(piece, memory).clamp(-1, 1)


@torch.inference_mode()
def stream_tiles(vae: VAE, latents: Tensor, tile: tuple[int, int]) -> Iterator[Tensor]:
    """As `stream`, by tiles that overlap, on the CPU. tile: height and width of each, in latents.

    Each tile is decoded through the whole clip, so that the VAE remembers one of them at a time; frames come when all
    are done. Where tiles overlap, each one's share grows evenly from its edge. Frames differ slightly from whole ones:
    the VAE's attention sees one tile, and its convolutions see zeros beyond the edge.
    """
    tile = min(tile[0], latents.shape[3]), min(tile[1], latents.shape[4])
    rows, columns = (_starts(whole, side) for whole, side in zip(latents.shape[3:], tile, strict=True))
    clip, shares = torch.empty(0), list[list[Tensor]]()
    for y, x in product(rows, columns):
        first = 0
        for piece in stream(vae, latents[..., y : y + tile[0], x : x + tile[1]]):
            frames, height, width = piece.shape[2:]
            scale = width // tile[1]
            if not len(clip):
                clip = torch.zeros(1, 3, 4 * latents.shape[2] - 3, *(scale * side for side in latents.shape[3:]))
                shares = [_shares(starts, side, scale) for starts, side in zip((rows, columns), tile, strict=True)]
            share = shares[0][rows.index(y)][:, None] * shares[1][columns.index(x)]
            into = clip[:, :, first : first + frames, scale * y : scale * y + height, scale * x : scale * x + width]
            into += piece.float().cpu() * share
            first += frames
    yield from clip.split([1] + [4] * (latents.shape[2] - 1), dim=2)


def _starts(whole: int, side: int) -> list[int]:
    """Where tiles of a side begin, which overlap by `OVERLAP` at least."""
    if side >= whole:
        return [0]
    many = ceil((whole - OVERLAP) / max(side - OVERLAP, 1))
    return [round(number * (whole - side) / (many - 1)) for number in range(many)]


def _shares(starts: Sequence[int], side: int, scale: int) -> list[Tensor]:
    """Of each tile along one axis the share of each of its pixels: all tiles' sum is one everywhere."""
    size = scale * side
    edge = torch.arange(size) + 0.5
    own = torch.minimum(edge, edge.flip(0)).clamp(max=scale * OVERLAP)
    sums = torch.zeros(scale * (starts[-1] + side))
    for start in starts:
        sums[scale * start :][:size] += own
    return [own / sums[scale * start :][:size] for start in starts]


def frames_of(
    vae: VAE,
    latents: Tensor,
    rounded: VAE | None = None,
    note: Callable[[str], object] = str,
    tile: tuple[int, int] | None = None,
) -> Iterator[np.ndarray]:
    """The model's latents [1, channels, T, h, w] to uint8 frames [n, height, width, 3], piece by piece as `stream`, or
    as `stream_tiles` of a tile's size.

    rounded: the same VAE in bfloat16, which decodes all but the first two pieces, if its own are as good: the second is
    the first that remembers frames before it; note: is told whether it does. With tiles it decodes nothing. RenderError
    where the VAE's values are not finite.
    """
    latents = denormalise(vae, latents)
    pieces = stream(vae, latents) if tile is None else stream_tiles(vae, latents, tile)
    if rounded is not None and tile is None:
        others = stream(rounded, latents)
        first, theirs = list(islice(pieces, 2)), islice(others, 2)
        found = min(
            metrics.psnr(metrics.mean_square(to_uint8(their), to_uint8(own)))
            for own, their in zip(first, theirs, strict=True)
        )
        dtype = "bfloat16" if found >= ENOUGH else "float32"
        note(f"decoded in {dtype}: in bfloat16, the first frames have a PSNR of {found:.1f} dB to float32's")
        pieces = chain(first, others if found >= ENOUGH else pieces)
        del others  # with what it remembers, if it is not the one that goes on
    for piece in pieces:
        if not piece.isfinite().all():
            raise RenderError("the VAE gave values that are not finite: its weights are damaged", hint=FETCH_AGAIN)
        yield to_uint8(piece)


def to_uint8(frames: Tensor) -> np.ndarray:
    """[1, 3, n, height, width] in [-1, 1] to uint8 [n, height, width, 3]."""
    scaled = (frames[0].float() + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu().numpy()


def from_uint8(frames: Tensor) -> Tensor:
    """uint8 [n, height, width, 3] to float32 [1, 3, n, height, width] in [-1, 1]."""
    return frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
