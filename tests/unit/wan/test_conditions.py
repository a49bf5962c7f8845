"""What a transformer sees of images: its own layers, and the channels beside the latents, against diffusers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel

from fpsgen.wan.conditions import beside
from fpsgen.wan.config import WanConfig
from fpsgen.wan.transformer import WanTransformer
from fpsgen.wan.vae import from_uint8
from fpsgen.weights import keys
from fpsgen.weights.layout import recognise
from fpsgen.weights.load import load_vae

IMAGE_DIM, PER_IMAGE = 40, 5
SMALL = WanConfig(64, 96, 2, 2, text_dim=24, freq_dim=32, in_channels=36, image_dim=IMAGE_DIM)


def both(positions: int | None) -> tuple[WanTransformer3DModel, WanTransformer]:
    """diffusers' transformer with random weights, and ours with the same."""
    torch.manual_seed(0)
    theirs = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=32, text_dim=24, freq_dim=32, ffn_dim=96, num_layers=2,
        in_channels=36, out_channels=16, image_dim=IMAGE_DIM, added_kv_proj_dim=64, pos_embed_seq_len=positions,
    )  # fmt: skip
    for parameter in theirs.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    with torch.device("meta"):
        ours = WanTransformer(replace(SMALL, image_positions=positions))
    state = {keys.TRANSFORMER.to_original(name): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(state, assign=True)
    return theirs, ours


@pytest.mark.parametrize("images", [1, 2])
def test_attention_to_images_equals_diffusers(images: int) -> None:
    theirs, ours = both(2 * PER_IMAGE if images > 1 else None)
    generator = torch.Generator().manual_seed(7)
    x, text = torch.randn(1, 36, 3, 8, 12, generator=generator), torch.randn(1, 512, 24, generator=generator)
    states = torch.randn(images, PER_IMAGE, IMAGE_DIM, generator=generator)
    timestep = torch.tensor([700.0])
    with torch.inference_mode():
        expected = theirs(x, timestep, text, states).sample
        of_image = ours.embed_image(states.flatten(0, 1)[None])
        context = [a + b for a, b in zip(ours.embed_text(text), of_image, strict=True)]
        got = ours(x, timestep, context)
        blind = ours(x, timestep, ours.embed_text(text))
    assert (got - expected).norm() <= 1e-4 * expected.norm()  # float32 on both sides, in another order
    assert (blind - expected).norm() > 1e-2 * expected.norm()


@pytest.mark.parametrize(("images", "frames"), [(1, 1), (1, 9), (2, 5), (2, 13)])
def test_channels_equal_diffusers(wan_pipeline: WanPipeline, wan_folder: Path, images: int, frames: int) -> None:
    """The mask exactly; latents of the image and of grey frames but for the order of sums."""
    pixels = np.random.default_rng(frames).integers(0, 256, (images, 32, 48, 3), dtype=np.uint8)
    bare = SimpleNamespace(
        config=SimpleNamespace(expand_timesteps=False), vae=wan_pipeline.vae, _execution_device="cpu",
        vae_scale_factor_temporal=4, vae_scale_factor_spatial=8,
    )  # fmt: skip
    first, *last = (from_uint8(torch.from_numpy(own[None]))[:, :, 0] for own in pixels)
    with torch.inference_mode():
        _, expected = WanImageToVideoPipeline.prepare_latents(
            bare, first, 1, 16, 32, 48, frames, torch.float32, "cpu", None, None, *last
        )
    got = beside(load_vae(recognise(wan_folder), torch.device("cpu")), [*pixels], frames)
    assert torch.equal(got[:, :4], expected[:, :4])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)  # of values up to 4 in float32
