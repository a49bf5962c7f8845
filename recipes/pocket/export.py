"""Write the trained pocket model as a Diffusers folder that `WanPipeline.from_pretrained` loads.

    python -m recipes.pocket.export --vae build/pocket/vae.pt --latents build/pocket/latents.pt \\
        --dit build/pocket/dit.pt --out build/pocket/model --version 1

Weights are bfloat16. `pocket.json` beside them says what the model is made for, and pins its files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor

from fpsgen.weights.convert import write_pipeline
from fpsgen.weights.keys import TRANSFORMER
from recipes.pocket import prompts, text_encoder, tokenizer
from recipes.pocket import vae as pocket_vae
from recipes.pocket.cache import load_vae
from recipes.pocket.train_dit import CONFIG
from recipes.pocket.train_vae import LOG_VARIANCE_BIAS
from recipes.pocket.world import FRAMES, HEIGHT, WIDTH

FPS = 16
STEPS, GUIDANCE, SHIFT = 20, 4.0, 3.0
TILE = (2, 2, 2)  # 4 x 3 x 5 = 60 tiles of the 7 x 6 x 10 grid, the last in time half as deep
TRIES = ["a penguin surfing", "a dog jumping in the city", "a balloon rising at night"]  # for who asks for more
LARGEST = 24_000_000  # bytes of weights: what a wheel can carry


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


def part_of(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): tensor for name, tensor in state.items() if name.startswith(f"{part}.")}


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


def write(vae: Path, latents_file: Path, dit: Path, out: Path, version: int) -> None:
    """The folder `out`, of what the trainers and `cache` wrote."""
    state = torch.load(dit, weights_only=True)["average"]
    latents = torch.load(latents_file, weights_only=True, mmap=True)
    out.mkdir(parents=True, exist_ok=True)
    export_transformer(part_of(state, "transformer"), out / "transformer")
    export_vae(vae, latents["mean"], latents["std"], out / "vae")
    words = tokenizer.build()
    words.save_pretrained(out / "tokenizer")
    encoder = text_encoder.build(words)
    encoder.load_state_dict(part_of(state, "text_encoder"))
    encoder.bfloat16().save_pretrained(out / "text_encoder")
    write_pipeline(out, SHIFT)
    _write(out / "pocket.json", describe(out, version))
    size = sum(path.stat().st_size for path in out.glob("*/*.safetensors"))
    print(f"{out}: {size:,} bytes of weights")
    if size > LARGEST:
        raise SystemExit(f"that is more than {LARGEST:,}")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, default=Path("build/pocket/vae.pt"))
    parser.add_argument("--latents", type=Path, default=Path("build/pocket/latents.pt"))
    parser.add_argument("--dit", type=Path, default=Path("build/pocket/dit.pt"))
    parser.add_argument("--out", type=Path, default=Path("build/pocket/model"))
    parser.add_argument("--version", type=int, default=1)
    return parser


def main() -> None:
    args = parser().parse_args()
    write(args.vae, args.latents, args.dit, args.out, args.version)


def _write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
