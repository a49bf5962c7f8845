"""The models that fpsgen knows by name: what each is, where the Hugging Face hub has it, and how much that is.

A table without slow imports, for whoever lists names. Sizes are by parameter counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Format = Literal["original", "diffusers"]


@dataclass(frozen=True)
class Source:
    """A repository of the hub. gb: size of what is fetched, None where that is not certain. files: all that is taken of
    it, where that is no whole model: a transformer in a file of its own, of two experts the high-noise one first, or
    parts that models share."""

    repository: str
    gb: float | None
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Known:
    """A model. about: what it makes, in words; kind: which of `wan.config.SHAPES` it is; own: its settings, where they
    are not those of its kind."""

    about: str
    kind: str
    sources: Mapping[Format, Source]
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The names under which it is published."""
        return " ".join(part for each in self.sources.values() for part in (each.repository, *each.files))

    @property
    def in_8_bits(self) -> bool:
        """Whether its transformer's linear layers are published in FP8."""
        return any("fp8" in name for name in self.files)

    @property
    def is_wan_ais(self) -> bool:
        """Whether it is published by Wan's own authors, in both formats."""
        return len(self.sources) > 1

    @property
    def files(self) -> tuple[str, ...]:
        """The files of the transformer, where its other parts are those of other models; none of a whole model."""
        return self.sources["original"].files if "original" in self.sources else ()


@dataclass(frozen=True)
class Given:
    """Where parts are that the user named: each a file, or a folder that has it."""

    text_encoder: Path | None = None
    vae: Path | None = None
    image_encoder: Path | None = None

    def __bool__(self) -> bool:
        return self != NOTHING


NOTHING = Given()
_KINDS = {
    "2.2-14b": "Wan2.2 text-to-video",
    "2.2-i2v": "Wan2.2 image-to-video",
    "5b": "Wan2.2 text-and-image-to-video",
    "i2v-14b": "Wan2.1 image-to-video",
    "flf2v-14b": "Wan2.1 first-and-last-frame-to-video",
}


def told_of(kind: str) -> str:
    """What a kind of `wan.config.SHAPES` is, in words."""
    gated = kind.endswith("-vsa")  # FastVideo's models, with gates for another sparse attention
    return _KINDS.get(kind.removesuffix("-vsa"), "Wan2.1 text-to-video") + (" (VSA)" if gated else "")


def _wan(
    about: str, kind: str, name: str, gb: int, diffusers_gb: int, own: Any = (), ending: str = "-Diffusers"
) -> Known:
    """One of Wan-AI's, who publish each in both formats."""
    repository = f"Wan-AI/{name}"
    sources: dict[Format, Source] = {"original": Source(repository, gb)}
    return Known(about, kind, sources | {"diffusers": Source(repository + ending, diffusers_gb)}, dict(own))


def _files(about: str, kind: str, repository: str, gb: int, *names: str, own: Any = ()) -> Known:
    """Transformers in files of their own."""
    return Known(about, kind, {"original": Source(repository, gb, names)}, dict(own))


def _pair(pattern: str) -> tuple[str, str]:
    return pattern.format("high"), pattern.format("low")


_TEXT, _IMAGE, _BOTH = "text to video", "image to video", "text or image to video"
_FIRST_LAST = "first and last frame to video"
_COMFY = "split_files/diffusion_models/"
_480P = {"width": 832, "height": 480, "shift": 3.0}  # Wan2.1 `generate.py` lowers the shift of image-to-video at 480p

# Transformer and VAE in float32, text encoder in bfloat16; in Wan2.1's Diffusers folders the text encoder in float32.
# Those of LightX2V are bfloat16, or FP8 with one byte per weight.
MODELS: dict[str, Known] = {
    "1.3b": _wan(_TEXT, "1.3b", "Wan2.1-T2V-1.3B", 18, 29),
    "14b": _wan(_TEXT, "14b", "Wan2.1-T2V-14B", 69, 80),
    "2.2-14b": _wan(_TEXT, "2.2-14b", "Wan2.2-T2V-A14B", 126, 126),
    "2.2-i2v": _wan(_IMAGE, "2.2-i2v", "Wan2.2-I2V-A14B", 126, 126),
    "5b": _wan(_BOTH, "5b", "Wan2.2-TI2V-5B", 34, 34),
    "i2v-480p": _wan(_IMAGE, "i2v-14b", "Wan2.1-I2V-14B-480P", 82, 90, _480P),
    "i2v-720p": _wan(_IMAGE, "i2v-14b", "Wan2.1-I2V-14B-720P", 82, 90),
    "flf2v": _wan(_FIRST_LAST, "flf2v-14b", "Wan2.1-FLF2V-14B-720P", 82, 90, ending="-diffusers"),
    "1.3b-fast": Known(
        f"{_TEXT}, 3 steps", "1.3b-vsa", {"diffusers": Source("FastVideo/FastWan2.1-T2V-1.3B-Diffusers", 26)}
    ),
    "5b-fast": Known(
        f"{_BOTH}, 3 steps", "5b", {"diffusers": Source("FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers", None)}
    ),
    "14b-fast": _files(
        f"{_TEXT}, 4 steps", "14b",
        "lightx2v/Wan2.1-Distill-Models", 29, "wan2.1_t2v_14b_lightx2v_4step.safetensors",
    ),
    "14b-fast-fp8": _files(
        f"{_TEXT}, 4 steps, FP8", "14b",
        "lightx2v/Wan2.1-Distill-Models", 15, "wan2.1_t2v_14b_scaled_fp8_e4m3_lightx2v_4step.safetensors",
    ),
    "2.2-i2v-fast": _files(
        f"{_IMAGE}, 4 steps", "2.2-i2v",
        "lightx2v/Wan2.2-Distill-Models", 57, *_pair("wan2.2_i2v_A14b_{}_noise_lightx2v_4step.safetensors"),
    ),
    "2.2-i2v-fast-fp8": _files(
        f"{_IMAGE}, 4 steps, FP8", "2.2-i2v", "lightx2v/Wan2.2-Distill-Models", 29,
        *_pair("wan2.2_i2v_A14b_{}_noise_scaled_fp8_e4m3_lightx2v_4step.safetensors"),
    ),
    "i2v-480p-fast": _files(
        f"{_IMAGE}, 4 steps", "i2v-14b",
        "lightx2v/Wan2.1-Distill-Models", 33, "wan2.1_i2v_480p_lightx2v_4step.safetensors", own=_480P,
    ),
    "i2v-720p-fast": _files(
        f"{_IMAGE}, 4 steps", "i2v-14b",
        "lightx2v/Wan2.1-Distill-Models", 33, "wan2.1_i2v_720p_lightx2v_4step.safetensors",
    ),
    "14b-fp8": _files(
        f"{_TEXT}, FP8", "14b",
        "Comfy-Org/Wan_2.1_ComfyUI_repackaged", 14, f"{_COMFY}wan2.1_t2v_14B_fp8_scaled.safetensors",
    ),
    "2.2-14b-fp8": _files(
        f"{_TEXT}, FP8", "2.2-14b",
        "Comfy-Org/Wan_2.2_ComfyUI_Repackaged", 29, *_pair(_COMFY + "wan2.2_t2v_{}_noise_14B_fp8_scaled.safetensors"),
    ),
    "2.2-i2v-fp8": _files(
        f"{_IMAGE}, FP8", "2.2-i2v",
        "Comfy-Org/Wan_2.2_ComfyUI_Repackaged", 29, *_pair(_COMFY + "wan2.2_i2v_{}_noise_14B_fp8_scaled.safetensors"),
    ),
}  # fmt: skip

# What a transformer alone lacks, by the words for it, from the smallest whole models that have it.
PIECES: dict[str, Source] = {
    "tokenizer": Source(
        "Wan-AI/Wan2.1-T2V-1.3B", 0.02, ("google/umt5-xxl/tokenizer.json", "google/umt5-xxl/tokenizer_config.json")
    ),
    "text-encoder": Source("Wan-AI/Wan2.1-T2V-1.3B", 11.4, ("models_t5_umt5-xxl-enc-bf16.pth",)),
    "vae": Source("Wan-AI/Wan2.1-T2V-1.3B", 0.5, ("Wan2.1_VAE.pth",)),
    "vae-2.2": Source("Wan-AI/Wan2.2-TI2V-5B", 2.8, ("Wan2.2_VAE.pth",)),
    "image-encoder": Source(
        "Wan-AI/Wan2.1-I2V-14B-480P", 4.8, ("models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",)
    ),
}  # fmt: skip
