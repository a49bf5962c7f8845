"""A Wan2.1 checkpoint as it would be downloaded, but for the values: true files, names, shapes and dtypes.

    python -m tests.tools.fake_checkpoint 1.3b --format original OUT          # 17.6 GB of random values
    python -m tests.tools.fake_checkpoint 14b --format diffusers --meta OUT   # headers; the values are holes
    python -m tests.tools.fake_checkpoint 14b --fp8 --experts OUT             # as Wan2.2 A14B in FP8, 41 GB
    python -m tests.tools.fake_checkpoint 2.2-14b --meta OUT                  # Wan2.2 A14B, in either format

With --meta every file has its full length but holds nothing behind its header, where the file system knows
holes. --fp8, in the original format: matrices of blocks in E4M3 with a scale for each row, as in LightX2V's
files, all else of the transformer in bfloat16. --experts: two of them; --same: both are hard links to the same
files. The tokenizer knows ten words. Names and shapes come from `golden` (original) and from the libraries' own
classes (diffusers), not from fpsgen.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedModel, UMT5Config, UMT5EncoderModel

from tests.tools import golden
from tests.tools.golden import Shapes
from tests.tools.tokenizer import make_tokenizer
from tests.tools.wan_pipeline import VAE_2_2

SIZES = {
    "1.3b": {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
    "14b": {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
    "5b": {"dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30, "in_dim": 48},
}
_14B = SIZES["2.2-14b"] = SIZES["14b"]  # twice
# Those that begin with an image: how many images CLIP reads.
FROM_IMAGES = {
    "2.2-i2v": {**_14B, "in_dim": 36},
    "i2v-14b": {**_14B, "in_dim": 36, "images": 1},
    "flf2v-14b": {**_14B, "in_dim": 36, "images": 2},
}
VIT_H = {
    "hidden_size": golden.CLIP_WIDTH, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "hidden_act": "gelu", "projection_dim": 1024,
}  # fmt: skip
CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
SHARD_BYTES = {"original": 10e9, "diffusers": 5e9}
SAFETENSORS_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3"}
Dtypes = Mapping[str, torch.dtype]
_NOTHING: Dtypes = {}
EXPERTS = ("high_noise_model", "low_noise_model")


def make(
    size: str, form: str, out: Path, meta: bool, fp8: bool = False, experts: bool = False, same: bool = False
) -> None:
    out.mkdir(parents=True)
    torch.manual_seed(0)
    own = dict((SIZES | FROM_IMAGES)[size])
    images, two = own.pop("images", 0), experts or size.startswith("2.2-")
    if form == "original":
        original(own, out, meta, fp8, two, same, images)
    else:
        diffusers(own, out, meta, two, same, images)


def link(folder: Path, again: Path) -> None:
    """The same files in another folder."""
    again.mkdir()
    for file in folder.iterdir():
        os.link(file, again / file.name)


def original(size: dict[str, int], out: Path, meta: bool, fp8: bool, experts: bool, same: bool, images: int) -> None:
    inputs = size.get("in_dim", 16)
    channels = 48 if inputs == 48 else 16
    dims = (size["dim"], size["ffn_dim"], size["num_layers"])
    transformer = golden.transformer(*dims, channels, inputs, images)
    dtype, eight = torch.float32, []
    if fp8:
        dtype, eight = torch.bfloat16, [name for name, shape in transformer.items() if is_rounded(name, shape)]
        scales = {f"{name}_scale": (transformer[name][0], 1) for name in eight}
        transformer = dict(sorted((transformer | scales).items()))
    own = dict.fromkeys(eight, torch.float8_e4m3fn) | {f"{name}_scale": torch.float32 for name in eight}
    told = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "eps": 1e-6, "freq_dim": 256, "in_dim": 16}
    kind = {16: "t2v", 48: "ti2v"}.get(inputs, "flf2v" if images > 1 else "i2v")
    for folder in [out / name for name in EXPERTS] if experts else [out]:
        if same and folder.name == EXPERTS[1]:
            link(out / EXPERTS[0], folder)
            continue
        folder.mkdir(exist_ok=True)
        write_shards(folder, "diffusion_pytorch_model", transformer, dtype, SHARD_BYTES["original"], meta, own)
        write_json(folder / "config.json", {**told, **size, "model_type": kind, "out_dim": channels, "text_len": 512})
    write_pth(out / "models_t5_umt5-xxl-enc-bf16.pth", golden.text_encoder(), torch.bfloat16, meta)
    if images:
        half = {"textual.token_embedding.weight": (250002, 1024)}  # the text half has more
        write_pth(out / CLIP, golden.image_encoder() | half, torch.float32, meta)
    if channels == 48:
        write_pth(out / "Wan2.2_VAE.pth", golden.vae_2_2(), torch.float32, meta)
    else:
        write_pth(out / "Wan2.1_VAE.pth", golden.vae(), torch.float32, meta)
    make_tokenizer().save_pretrained(out / "google" / "umt5-xxl")


def diffusers(size: dict[str, int], out: Path, meta: bool, experts: bool, same: bool, images: int) -> None:
    inputs = size.get("in_dim", 16)
    channels = 48 if inputs == 48 else 16
    more = {"image_dim": golden.CLIP_WIDTH, "added_kv_proj_dim": size["dim"]} if images else {}
    with torch.device("meta"):
        parts: dict[str, tuple[nn.Module, str]] = {
            "transformer": (
                WanTransformer3DModel(
                    num_attention_heads=size["num_heads"], ffn_dim=size["ffn_dim"], num_layers=size["num_layers"],
                    in_channels=inputs, out_channels=channels, **more,
                    pos_embed_seq_len=257 * images if images > 1 else None,
                ),
                "diffusion_pytorch_model",
            ),
            "vae": (AutoencoderKLWan(**(VAE_2_2 if channels == 48 else {})), "diffusion_pytorch_model"),
            "text_encoder": (
                UMT5EncoderModel(
                    UMT5Config(
                        vocab_size=golden.T5_VOCABULARY, d_model=golden.T5_WIDTH, d_kv=64, d_ff=golden.T5_HIDDEN,
                        num_layers=golden.T5_LAYERS, num_heads=golden.T5_HEADS, feed_forward_proj="gated-gelu",
                    )
                ),
                "model",
            ),
        }  # fmt: skip
        if images:
            parts["image_encoder"] = (CLIPVisionModel(CLIPVisionConfig(**VIT_H)), "model")
        if experts:
            parts["transformer_2"] = parts["transformer"]
    for name, (module, stem) in parts.items():
        if same and name == "transformer_2":
            link(out / "transformer", out / name)
            continue
        (out / name).mkdir()
        of_transformers = isinstance(module, PreTrainedModel)
        config = module.config if of_transformers else dict(module.config)
        told = config.to_dict() if of_transformers else {"_class_name": type(module).__name__, **config}
        write_json(out / name / "config.json", told)
        shapes = {key: tuple(value.shape) for key, value in module.named_parameters()}
        halved = channels == 48 and name == "text_encoder"  # which Wan-AI publish so there
        dtype = torch.bfloat16 if halved else torch.float32
        write_shards(out / name, stem, shapes, dtype, SHARD_BYTES["diffusers"], meta)
    make_tokenizer().save_pretrained(out / "tokenizer")
    index: dict[str, object] = {"_class_name": "WanPipeline", "expand_timesteps": channels == 48}
    if inputs == 36:
        index["_class_name"] = "WanImageToVideoPipeline"
    if experts:
        index["transformer_2"] = ["diffusers", "WanTransformer3DModel"]
        index["boundary_ratio"] = 0.9 if inputs == 36 else 0.875
    write_json(out / "model_index.json", index)


def is_rounded(name: str, shape: tuple[int, ...]) -> bool:
    return name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2


def write_shards(
    folder: Path, stem: str, shapes: Shapes, dtype: torch.dtype, most: float, meta: bool, own: Dtypes = _NOTHING
) -> None:
    """Safetensors of at most `most` bytes; with an index where there are several. own: dtypes of some of them."""
    shards: list[Shapes] = [{}]
    size = 0.0
    for name, shape in shapes.items():
        count = math.prod(shape) * own.get(name, dtype).itemsize
        if size + count > most:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += count
    if len(shards) == 1:
        write_safetensors(folder / f"{stem}.safetensors", shapes, dtype, meta, own)
        return
    weight_map = {}
    for n, shard in enumerate(shards):
        name = f"{stem}-{n + 1:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / name, shard, dtype, meta, own)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(math.prod(shape) * own.get(name, dtype).itemsize for name, shape in shapes.items())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / f"{stem}.safetensors.index.json", index)


def write_safetensors(file: Path, shapes: Shapes, dtype: torch.dtype, meta: bool, own: Dtypes = _NOTHING) -> None:
    """A header by the format's specification, room for the values, then these through a memory map."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places, end = {}, 0
    for name, shape in shapes.items():
        kind = own.get(name, dtype)
        begin, end = end, end + math.prod(shape) * kind.itemsize
        places[name] = (begin, shape, kind)
        header[name] = {"dtype": SAFETENSORS_NAMES[kind], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as target:
        target.write(len(text).to_bytes(8, "little") + text)
        target.truncate(8 + len(text) + end)
    if not meta:
        values = torch.from_file(str(file), shared=True, size=8 + len(text) + end, dtype=torch.uint8)[8 + len(text) :]
        for name, (begin, shape, kind) in places.items():
            raw = values[begin : begin + math.prod(shape) * kind.itemsize]
            if name.endswith("_scale"):
                raw.view(kind).fill_(bound(places[name.removesuffix("_scale")][1]) / 448)
            else:
                randomise(name, raw.view(kind).view(shape))


def write_pth(file: Path, shapes: Shapes, dtype: torch.dtype, meta: bool) -> None:
    """What torch.save writes, its values left out, then filled in through a memory map."""
    with torch.serialization.skip_data():
        torch.save({name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}, file)
    if not meta:
        with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
            state = torch.load(file, weights_only=True, mmap=True)
        for name, tensor in state.items():
            randomise(name, tensor)


def randomise(name: str, tensor: Tensor) -> None:
    """Values that keep activations near one: norms about 1, biases small, matrices by their inputs."""
    if name.endswith("bias"):
        tensor.uniform_(-0.05, 0.05)
    elif "norm" in name or name.endswith("gamma"):
        tensor.uniform_(0.9, 1.1)
    elif tensor.dtype == torch.float8_e4m3fn:  # whose scale makes them what they are elsewhere
        for rows in tensor.split(1024):
            rows.copy_(torch.empty(rows.shape).uniform_(-448, 448))
    else:
        tensor.uniform_(-bound(tensor.shape), bound(tensor.shape))


def bound(shape: Sequence[int]) -> float:
    """The largest value of a matrix."""
    return math.sqrt(3 / math.prod(shape[1:]))


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=sorted(SIZES | FROM_IMAGES))
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that does not exist yet")
    parser.add_argument("--format", choices=sorted(SHARD_BYTES), default="original")
    parser.add_argument("--meta", action="store_true", help="headers only")
    parser.add_argument("--fp8", action="store_true", help="a transformer in FP8, original format")
    parser.add_argument("--experts", action="store_true", help="two transformers")
    parser.add_argument("--same", action="store_true", help="both transformers are the same files")
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments()
    make(given.size, given.format, given.out, given.meta, given.fp8, given.experts, given.same)
