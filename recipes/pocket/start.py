"""A pocket model that has learned nothing yet, and the data that it will learn from.

    python -m recipes.pocket.start --vae build/pocket/vae.pt --latents build/pocket/latents.pt

Writes two folders. build/pocket/start is a Diffusers folder that `WanPipeline.from_pretrained` loads: the trained
VAE, a transformer of random weights, and a text encoder of random weights, which stays as it is drawn here: it tells
words and their places apart, and the transformer learns what they mean. build/pocket/data is what `fpsgen train`
reads: the latents of `cache`, each with some sentences that describe it. Weights are bfloat16. `pocket.json` beside
them says what the model is made for, and pins its files.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor

from fpsgen import files
from fpsgen.train import data
from fpsgen.train.data import Origin, Sample
from fpsgen.wan.config import WanConfig
from fpsgen.wan.text_encoder import TextEncoder
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import models
from fpsgen.weights.convert import write_pipeline
from fpsgen.weights.keys import TRANSFORMER
from fpsgen.weights.load import load_text_encoder
from recipes.pocket import prompts, text_encoder, tokenizer
from recipes.pocket import vae as pocket_vae
from recipes.pocket.cache import CACHE_SEED, load_vae
from recipes.pocket.train_vae import LOG_VARIANCE_BIAS
from recipes.pocket.world import FRAMES, HEIGHT, WIDTH

CONFIG = WanConfig(dim=384, num_heads=3, num_layers=6, ffn_dim=256, text_dim=text_encoder.TEXT_DIM)
FPS = 16
STEPS, GUIDANCE, SHIFT = 20, 4.0, 3.0
TILE = (2, 2, 2)  # 4 x 3 x 5 = 60 tiles of the 7 x 6 x 10 grid, the last in time half as deep
TRIES = ["a penguin surfing", "a dog jumping in the city", "a balloon rising at night"]  # for who asks for more
CAPTIONS = 8  # of each clip


def export_transformer(state: dict[str, Tensor], folder: Path) -> None:
    """Through diffusers' own class, so that a name or a shape it does not know is an error here."""
    model = WanTransformer3DModel(
        patch_size=CONFIG.PATCH,
        num_attention_heads=CONFIG.num_heads,
        attention_head_dim=CONFIG.head_dim,
        in_channels=CONFIG.in_channels,
        out_channels=CONFIG.out_channels,
        text_dim=CONFIG.text_dim,
        freq_dim=CONFIG.freq_dim,
        ffn_dim=CONFIG.ffn_dim,
        num_layers=CONFIG.num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=CONFIG.eps,
        rope_max_seq_len=1024,
    )
    ours = {name: TRANSFORMER.to_original(name) for name in model.state_dict()}
    model.load_state_dict({name: state[ours[name]] for name in ours})
    # Not `model.to(bfloat16).save_pretrained`: it would leave what diffusers keeps in float32 as it is.
    model.save_config(folder)
    save_file(as_bfloat16(model.state_dict()), folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def export_vae(path: Path, mean: Tensor, std: Tensor, folder: Path) -> None:
    vae = load_vae(path)
    vae.quant_conv.bias[pocket_vae.Z_DIM :] += LOG_VARIANCE_BIAS
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    vae.save_config(folder)
    save_file(as_bfloat16(vae.state_dict()), folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def as_bfloat16(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.bfloat16().contiguous() for name, tensor in state.items()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def describe(folder: Path, version: int) -> dict:
    weights = sorted(folder.glob("*/*.safetensors"))
    return {
        "version": version,
        "size": [WIDTH, HEIGHT],
        "frames": FRAMES,
        "fps": FPS,
        "tile": TILE,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "shift": SHIFT,
        "negative": "",
        "knows": prompts.knows(),
        "subjects": prompts.subject_words(),
        "tries": TRIES,
        "sha256": {path.relative_to(folder).as_posix(): sha256(path) for path in weights},
    }


def write(vae: Path, latents: dict, out: Path, seed: int) -> None:
    """The folder `out`. latents: what `cache` wrote."""
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    export_transformer(WanTransformer(CONFIG).state_dict(), out / "transformer")
    export_vae(vae, latents["mean"], latents["std"], out / "vae")
    words = tokenizer.build()
    words.save_pretrained(out / "tokenizer")
    text_encoder.build(words).bfloat16().save_pretrained(out / "text_encoder")
    write_pipeline(out, SHIFT)
    files.write_json(out / "pocket.json", describe(out, version=0))


def samples(latents: dict, encoder: TextEncoder, seed: int) -> Iterator[tuple[Origin, Sample]]:
    """What `data.write` takes, of what `cache` wrote."""
    rows = zip(latents["latents"], latents["masks"], latents["labels"], strict=True)
    for number, (own, mask, label) in enumerate(rows):
        rng = random.Random(f"{seed} {number}")
        captions = [prompts.caption(*label, rng) for _ in range(CAPTIONS)]
        texts = [encoder.encode(caption).text for caption in captions]
        yield Origin(captions[0], CACHE_SEED + number), Sample(own.float(), texts, mask[0])


def main() -> None:
    args = parser().parse_args()
    latents = torch.load(args.latents, weights_only=True, mmap=True)
    write(args.vae, latents, args.out, args.seed)
    model = models.open_folder(args.out, "pocket")
    encoder = load_text_encoder(model.checkpoint, torch.device("cpu"), torch.bfloat16)
    negative = encoder.encode(model.defaults.negative).text
    index = data.index_of(model, model.defaults, by="recipes.pocket.start", captions=CAPTIONS, seed=args.seed)
    data.write(args.data, index, negative, samples(latents, encoder, args.seed))
    print(f"{args.out}, and {len(latents['labels'])} samples in {args.data}")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, default=Path("build/pocket/vae.pt"))
    parser.add_argument("--latents", type=Path, default=Path("build/pocket/latents.pt"))
    parser.add_argument("--out", type=Path, default=Path("build/pocket/start"))
    parser.add_argument("--data", type=Path, default=Path("build/pocket/data"))
    parser.add_argument("--seed", type=int, default=0, help="of the text encoder's weights, and of the sentences")
    return parser


if __name__ == "__main__":
    main()
