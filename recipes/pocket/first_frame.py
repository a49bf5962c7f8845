"""Where in time the shipped model is weakest: the VAE by frame, the transformer by latent frame.

    python -m recipes.pocket.first_frame

Rendered clips go through the VAE and back; their latents are mixed with noise, and the transformer, told the prompt,
predicts them in one step.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from fpsgen.wan import plan, sizes
from fpsgen.weights import models
from fpsgen.weights.load import load_text_encoder, load_transformer
from recipes.pocket import prompts
from recipes.pocket.train_vae import as_tensors
from recipes.pocket.world import FRAMES, HEIGHT, WIDTH, render

CLIPS, SEED = 12, 900
SIGMAS = (0.8, 0.5, 0.2)


@torch.inference_mode()
def main() -> None:
    cpu, model = torch.device("cpu"), models.find("pocket")
    vae = AutoencoderKLWan.from_pretrained(model.folder / "vae")
    encoder = load_text_encoder(model.checkpoint, cpu, torch.bfloat16)
    transformer = load_transformer(model.checkpoint, cpu, torch.float32)
    latent_shape = sizes.latent_shape(FRAMES, HEIGHT, WIDTH)
    plans = plan.dense(model.tiles(latent_shape), transformer.config.num_layers)
    mean, std = (torch.tensor(vae.config[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    decibels, errors = [], []
    for number, label in enumerate(random.Random(5).sample(prompts.combinations(), CLIPS)):
        clip, _ = as_tensors([render(*label, SEED + number)])
        latents = vae.encode(clip).latent_dist.mean
        squares = ((vae.decode(latents).sample.clamp(-1, 1) - clip) / 2).square()
        decibels.append(-10 * squares.mean((0, 1, 3, 4)).log10().numpy())
        latents = (latents - mean) / std
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(number))
        context = transformer.embed_text(encoder.encode(prompts.plain(*label)).text)
        errors.append([])
        for sigma in SIGMAS:
            noisy = (1 - sigma) * latents + sigma * noise
            predicted = noisy - sigma * transformer(noisy, torch.tensor([1000 * sigma]), context, plans)
            errors[-1].append((predicted - latents).square().mean((0, 1, 3, 4)).numpy())
    by_frame = np.mean(decibels, 0)
    print("VAE, PSNR in dB:", " ".join(f"{value:.1f}" for value in by_frame), f"mean {by_frame.mean():.1f}")
    for sigma, by_latent in zip(SIGMAS, np.mean(errors, 0), strict=True):
        print(f"transformer at sigma {sigma}, squared error:", " ".join(f"{value:.4f}" for value in by_latent))


if __name__ == "__main__":
    main()
