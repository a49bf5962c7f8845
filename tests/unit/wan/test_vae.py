"""Decoding and encoding are diffusers', but for the order of sums, piece by piece."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline

from fpsgen import assets, metrics
from fpsgen.wan import sizes
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.residual_vae import ResidualVAE
from fpsgen.weights.layout import recognise
from fpsgen.weights.load import load_vae
from tests.tools.wan_pipeline import VAE_2_2

SUMS: dict[str, float] = {"rtol": 0, "atol": 1e-5}  # of values up to 4 in float32, in another order


@pytest.mark.parametrize("shape", [(1, 8, 12), (2, 4, 4), (4, 6, 10)], ids=str)
def test_stream_equals_decode(wan_pipeline: WanPipeline, wan_folder: Path, shape: tuple[int, int, int]) -> None:
    vae = load_vae(recognise(wan_folder), torch.device("cpu"))
    latents = torch.randn(1, 16, *shape, generator=torch.Generator().manual_seed(2))
    pieces = list(wan_vae.stream(vae, latents))
    assert [piece.shape[2] for piece in pieces] == [1] + [4] * (shape[0] - 1)
    with torch.inference_mode():
        expected = wan_pipeline.vae.decode(latents).sample
    torch.testing.assert_close(torch.cat(pieces, 2), expected, **SUMS)
    ours, theirs = wan_vae.to_uint8(torch.cat(pieces, 2)), wan_vae.to_uint8(expected)
    assert metrics.psnr(metrics.mean_square(ours, theirs)) > 70


def test_two_streams_in_a_row_do_not_mix(wan_folder: Path) -> None:
    vae = load_vae(recognise(wan_folder), torch.device("cpu"))
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    first = next(wan_vae.stream(vae, latents))  # abandoned after one piece
    again = list(wan_vae.stream(vae, latents))
    assert torch.equal(first, again[0])


def test_two_streams_side_by_side_do_not_mix(wan_folder: Path) -> None:
    vae = load_vae(recognise(wan_folder), torch.device("cpu"))
    latents = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(2)).split(1)
    both = zip(*(wan_vae.stream(vae, own) for own in latents), strict=True)
    for pieces, own in zip(zip(*both, strict=True), latents, strict=True):
        assert torch.equal(torch.cat(pieces, 2), torch.cat(list(wan_vae.stream(vae, own)), 2))


def test_latent_shape_and_bytes() -> None:
    assert sizes.latent_shape(81, 720, 1280) == (21, 90, 160)
    assert sizes.latent_shape(1, 16, 16) == (1, 2, 2)
    frames = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 1, 3).expand(1, 3, 2, 4, 3)
    out = wan_vae.to_uint8(frames)
    assert out.shape == (2, 4, 3, 3)
    assert np.unique(out[0, 0], axis=0).tolist() == [[0] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("count", [1, 5, 13])
def test_encode_equals_diffusers(wan_pipeline: WanPipeline, wan_folder: Path, count: int) -> None:
    vae = load_vae(recognise(wan_folder), torch.device("cpu"))
    frames = np.random.default_rng(count).integers(0, 256, (count, 32, 48, 3), dtype=np.uint8)
    latents = wan_vae.encode(vae, frames)
    assert latents.shape == (1, 16, *sizes.latent_shape(count, 32, 48))
    pixels = wan_vae.from_uint8(torch.from_numpy(frames))
    with torch.inference_mode():
        theirs = wan_pipeline.vae.encode(pixels).latent_dist.mode()
    config = wan_pipeline.vae.config
    mean, std = (torch.tensor(own).view(1, -1, 1, 1, 1) for own in (config.latents_mean, config.latents_std))
    torch.testing.assert_close(latents, (theirs - mean) / std, **SUMS)
    assert np.array_equal(wan_vae.to_uint8(pixels), frames)


def test_bfloat16_decodes_where_it_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first five frames are float32's either way; the others are one's or the other's, to the bit."""
    vae = load_vae(recognise(assets.folder("pocket")), torch.device("cpu"))
    rounded = copy.deepcopy(vae).bfloat16()
    latents = torch.randn(1, 16, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    exact, coarse = (np.concatenate([*wan_vae.frames_of(own, latents)]) for own in (vae, rounded))
    notes: list[str] = []
    mixed = np.concatenate([*wan_vae.frames_of(vae, latents, rounded, notes.append)])
    assert np.array_equal(mixed[:5], exact[:5])
    assert np.array_equal(mixed[5:], coarse[5:])
    assert not np.array_equal(mixed, exact)
    assert 45 <= metrics.psnr(metrics.mean_square(mixed, exact)) < 100
    monkeypatch.setattr(wan_vae, "ENOUGH", 90)
    assert np.array_equal(np.concatenate([*wan_vae.frames_of(vae, latents, rounded, notes.append)]), exact)
    assert ["bfloat16:" in note for note in notes] == [True, False]
    monkeypatch.setattr(wan_vae, "ENOUGH", 45)
    for name, value in rounded.decoder.named_parameters():  # which a clip's first frame does not go through
        value.data.mul_(0 if "time_conv" in name else 1)
    assert np.array_equal(np.concatenate([*wan_vae.frames_of(vae, latents, rounded, notes.append)]), exact)


def test_wan22s_vae_goes_piece_by_piece_as_diffusers_as_a_whole() -> None:
    """Through the same layers, in the same order; what it kept of another clip changes nothing."""
    theirs = AutoencoderKLWan(**{**VAE_2_2, "base_dim": 4, "decoder_base_dim": 4}).requires_grad_(False)
    vae = ResidualVAE(theirs.config)
    vae.load_state_dict(theirs.state_dict())
    assert sizes.latent_shape(9, 32, 64, stride=16) == (3, 2, 4)
    latents = torch.randn(1, 48, 3, 2, 4, generator=torch.Generator().manual_seed(2))
    next(wan_vae.stream(vae, latents))  # abandoned after one piece
    pieces = list(wan_vae.stream(vae, latents))
    assert [piece.shape[2] for piece in pieces] == [1, 4, 4]
    assert torch.equal(torch.cat(pieces, 2), theirs.decode(latents).sample)
    frames = np.random.default_rng(4).integers(0, 256, (9, 32, 64, 3), dtype=np.uint8)
    mode = theirs.encode(wan_vae.from_uint8(torch.from_numpy(frames))).latent_dist.mode()
    found = wan_vae.encode(vae, frames)
    assert torch.equal(found, wan_vae.normalise(vae, mode))
    torch.testing.assert_close(wan_vae.denormalise(vae, found), mode, **SUMS)


@pytest.mark.parametrize(("shape", "tile"), [((2, 17, 23), (13, 14)), ((1, 8, 27), (9, 16))])
def test_tiles_are_close_to_whole_frames(shape: tuple[int, int, int], tile: tuple[int, int]) -> None:
    """Of the pocket's VAE, which is trained: 36 dB, four levels of 255, because its attention sees one tile, here of
    half the sides that the product cuts. A size need not divide, and a tile may be longer than the frame."""
    vae = load_vae(recognise(assets.folder("pocket")), torch.device("cpu"))
    t, height, width = shape
    y, x = torch.meshgrid(torch.linspace(0, 1, 8 * height), torch.linspace(0, 1, 8 * width), indexing="ij")
    moving = torch.stack([torch.stack([y, x, ((6 * (x + y) + n / 9).sin() + 1) / 2], -1) for n in range(4 * t - 3)])
    latents = wan_vae.encode(vae, (moving * 255).to(torch.uint8).numpy())
    whole = list(wan_vae.frames_of(vae, latents))
    tiled = list(wan_vae.frames_of(vae, latents, tile=tile))
    assert [len(piece) for piece in tiled] == [len(piece) for piece in whole] == [1] + [4] * (t - 1)
    assert metrics.psnr(metrics.mean_square(np.concatenate(whole), np.concatenate(tiled))) > 36


@pytest.mark.parametrize(("whole", "side"), [(160, 84), (90, 32), (33, 32), (10, 9), (20, 20)])
def test_shares_of_tiles_are_one_in_sum(whole: int, side: int) -> None:
    starts = wan_vae._starts(whole, side)
    assert (starts[0], starts[-1] + side) == (0, whole)
    sums = torch.zeros(8 * whole)
    for start, share in zip(starts, wan_vae._shares(starts, side, 8), strict=True):
        assert (share > 0).all()
        sums[8 * start :][: 8 * side] += share
    torch.testing.assert_close(sums, torch.ones(8 * whole), rtol=0, atol=1e-6)  # float32 rounds some divisions


def test_tiles_of_the_vae_of_48_channels(wan_folder: Path) -> None:
    """Its frames are 16 times the latents; random weights tell only that all is there and in its place."""
    torch.manual_seed(0)
    vae = ResidualVAE({**VAE_2_2, "base_dim": 4, "decoder_base_dim": 4}).eval()
    latents = torch.randn(1, VAE_2_2["z_dim"], 2, 12, 10, generator=torch.Generator().manual_seed(2))
    whole, tiled = (
        torch.cat([*wan_vae.stream(vae, latents)], 2),
        torch.cat([*wan_vae.stream_tiles(vae, latents, (11, 10))], 2),
    )
    assert tiled.shape == whole.shape
    assert tiled.isfinite().all()
