"""Parameter names in Wan2.1's two checkpoint formats: the original (Wan-AI's own) and Diffusers'.

One table of (original, Diffusers) pairs per component. `{n}` stands for any number, alike on both sides; a
trailing `.weight`, `.bias` or `.gamma` is carried over. Patterns match whole names, so no name can be caught
by a part of another. Sources: diffusers `scripts/convert_wan_to_diffusers.py` (transformer, VAEs), Wan2.1
`wan/modules/t5.py` and transformers `models/umt5/modeling_umt5.py` (text encoder).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

Pair = tuple[str, str]
Shape = tuple[int, ...]
_PREFIXES = re.compile(r"(model\.)?(diffusion_model\.)?")


def bare(name: str) -> str:
    """A parameter's name without what ComfyUI and trainers put before a transformer's."""
    return _PREFIXES.sub("", name, count=1)


class KeyMap:
    """Renames parameters of one component. A name that is not in the table comes back as it is, so either
    direction may be applied to names of either format: no name of one is a different one's in the other."""

    def __init__(self, pairs: Iterable[Pair]):
        self._pairs = tuple(pairs)
        self._to_diffusers = [_rule(original, diffusers) for original, diffusers in self._pairs]
        self._to_original = [_rule(diffusers, original) for original, diffusers in self._pairs]

    def to_diffusers(self, key: str) -> str:
        return _rename(key, self._to_diffusers)

    def to_original(self, key: str) -> str:
        return _rename(key, self._to_original)


def _rule(source: str, target: str) -> tuple[re.Pattern[str], str]:
    pattern = re.escape(source).replace(r"\{n\}", r"(\d+)")
    return re.compile(rf"{pattern}(\.(?:weight|bias|gamma))?"), target.replace("{n}", "{}") + "{}"


def _rename(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, target in rules:
        if match := pattern.fullmatch(key):
            return target.format(*match.groups(default=""))
    return key


def _transformer() -> Iterator[Pair]:
    yield "text_embedding.0", "condition_embedder.text_embedder.linear_1"
    yield "text_embedding.2", "condition_embedder.text_embedder.linear_2"
    yield "time_embedding.0", "condition_embedder.time_embedder.linear_1"
    yield "time_embedding.2", "condition_embedder.time_embedder.linear_2"
    yield "time_projection.1", "condition_embedder.time_proj"
    yield "head.head", "proj_out"
    yield "head.modulation", "scale_shift_table"
    yield "blocks.{n}.modulation", "blocks.{n}.scale_shift_table"
    yield "blocks.{n}.norm3", "blocks.{n}.norm2"  # the original's norm1 and norm2 have no parameters
    # FastVideo's own, and the other place that people give it.
    yield "blocks.{n}.self_attn.gate_compress", "blocks.{n}.to_gate_compress"
    yield "blocks.{n}.self_attn.gate_compress", "blocks.{n}.attn1.to_gate_compress"
    yield "blocks.{n}.ffn.0", "blocks.{n}.ffn.net.0.proj"
    yield "blocks.{n}.ffn.2", "blocks.{n}.ffn.net.2"
    yield "img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"
    for ours, theirs in (("0", "norm1"), ("1", "ff.net.0.proj"), ("3", "ff.net.2"), ("4", "norm2")):
        yield f"img_emb.proj.{ours}", f"condition_embedder.image_embedder.{theirs}"
    for ours, theirs in (("k_img", "add_k_proj"), ("v_img", "add_v_proj"), ("norm_k_img", "norm_added_k")):
        yield f"blocks.{{n}}.cross_attn.{ours}", f"blocks.{{n}}.attn2.{theirs}"
    parts = (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"), ("norm_q", "norm_q"), ("norm_k", "norm_k"))
    for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2")):
        yield from ((f"blocks.{{n}}.{ours}.{a}", f"blocks.{{n}}.{theirs}.{b}") for a, b in parts)


def _residual(original: str, diffusers: str) -> Iterator[Pair]:
    parts = (("residual.0", "norm1"), ("residual.2", "conv1"), ("residual.3", "norm2"), ("residual.6", "conv2"))
    yield from ((f"{original}.{a}", f"{diffusers}.{b}") for a, b in (*parts, ("shortcut", "conv_shortcut")))


def _vae_ends() -> Iterator[Pair]:
    """What the VAEs of Wan2.1 and Wan2.2 call alike."""
    yield "conv1", "quant_conv"
    yield "conv2", "post_quant_conv"
    for half in ("encoder", "decoder"):
        yield f"{half}.conv1", f"{half}.conv_in"
        yield f"{half}.head.0", f"{half}.norm_out"
        yield f"{half}.head.2", f"{half}.conv_out"
        yield from _residual(f"{half}.middle.0", f"{half}.mid_block.resnets.0")
        yield from _residual(f"{half}.middle.2", f"{half}.mid_block.resnets.1")
        for part in ("norm", "to_qkv", "proj"):
            yield f"{half}.middle.1.{part}", f"{half}.mid_block.attentions.0.{part}"


def _vae() -> Iterator[Pair]:
    yield from _vae_ends()
    yield from _residual("encoder.downsamples.{n}", "encoder.down_blocks.{n}")
    for part in ("resample.1", "time_conv"):
        yield f"encoder.downsamples.{{n}}.{part}", f"encoder.down_blocks.{{n}}.{part}"
    # The decoder's list is flat in the original: three residual blocks, then a resampler, level by level.
    for level in range(4):
        for block in range(3):
            yield from _residual(f"decoder.upsamples.{4 * level + block}", f"decoder.up_blocks.{level}.resnets.{block}")
        for part in ("resample.1", "time_conv"):
            yield f"decoder.upsamples.{4 * level + 3}.{part}", f"decoder.up_blocks.{level}.upsamplers.0.{part}"


def _vae_2_2() -> Iterator[Pair]:
    yield from _vae_ends()
    # In the original the resampler of a level is the last of its list: after two residual blocks, or three.
    for half, levels, blocks, resampler, last in (
        ("encoder", "downsamples", "down_blocks", "downsampler", 2),
        ("decoder", "upsamples", "up_blocks", "upsampler", 3),
    ):
        for block in range(last):
            original, diffusers = f"{half}.{levels}.{{n}}.{levels}.{block}", f"{half}.{blocks}.{{n}}.resnets.{block}"
            yield from _residual(original, diffusers)
        for part in ("resample.1", "time_conv"):
            yield f"{half}.{levels}.{{n}}.{levels}.{last}.{part}", f"{half}.{blocks}.{{n}}.{resampler}.{part}"


def _text_encoder() -> Iterator[Pair]:
    yield "token_embedding", "shared"
    yield "token_embedding", "encoder.embed_tokens"  # the same tensor; files hold one of the two names, or both
    yield "norm", "encoder.final_layer_norm"
    yield "blocks.{n}.norm1", "encoder.block.{n}.layer.0.layer_norm"
    yield "blocks.{n}.norm2", "encoder.block.{n}.layer.1.layer_norm"
    attention, ffn = "encoder.block.{n}.layer.0.SelfAttention", "encoder.block.{n}.layer.1.DenseReluDense"
    for part in "qkvo":
        yield f"blocks.{{n}}.attn.{part}", f"{attention}.{part}"
    yield "blocks.{n}.pos_embedding.embedding", f"{attention}.relative_attention_bias"
    for ours, theirs in (("gate.0", "wi_0"), ("fc1", "wi_1"), ("fc2", "wo")):
        yield f"blocks.{{n}}.ffn.{ours}", f"{ffn}.{theirs}"
    # llama.cpp's names in GGUF files (`gguf` package, MODEL_ARCH.T5ENCODER), which lead to the original's only.
    yield "token_embedding", "token_embd"
    yield "norm", "enc.output_norm"
    for ours, theirs in (("norm1", "attn_norm"), ("norm2", "ffn_norm"), ("pos_embedding.embedding", "attn_rel_b")):
        yield f"blocks.{{n}}.{ours}", f"enc.blk.{{n}}.{theirs}"
    for part in "qkvo":
        yield f"blocks.{{n}}.attn.{part}", f"enc.blk.{{n}}.attn_{part}"
    for ours, theirs in (("gate.0", "ffn_gate"), ("fc1", "ffn_up"), ("fc2", "ffn_down")):
        yield f"blocks.{{n}}.ffn.{ours}", f"enc.blk.{{n}}.{theirs}"


def _image_encoder() -> Iterator[Pair]:
    """Wan2.1 `wan/modules/clip.py`, and transformers' `modeling_clip.py` without the prefix of the whole."""
    yield "visual.cls_embedding", "embeddings.class_embedding"
    yield "visual.patch_embedding", "embeddings.patch_embedding"
    yield "visual.pos_embedding", "embeddings.position_embedding.weight"
    yield "visual.pre_norm", "pre_layrnorm"  # so it is called
    yield "visual.post_norm", "post_layernorm"
    parts = (
        ("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("mlp.0", "mlp.fc1"), ("mlp.2", "mlp.fc2"),
        ("attn.proj", "self_attn.out_proj"), ("attn.to_qkv", f"self_attn.{QKV}"),
    )  # fmt: skip
    yield from ((f"visual.transformer.{{n}}.{a}", f"encoder.layers.{{n}}.{b}") for a, b in parts)


QKV = "qkv"  # three matrices that the original holds as one; no name of transformers'
# What files hold of CLIP beside that: its text half, what compares the two, and a list of numbers.
_NOT_SEEN = re.compile(
    r"textual\.|visual\.head$|log_scale$|visual_projection\.|(vision_model\.)?embeddings\.position_ids$"
)
IMAGE_ENCODER = KeyMap(_image_encoder())


def of_image_encoder(key: str, shape: Shape) -> list[tuple[str, Shape]]:
    """transformers' names and shapes of what a file of either format holds of an image encoder as one tensor, one
    after the other along its first dimension; none where it is of CLIP's other half."""
    if _NOT_SEEN.match(key):
        return []
    name = IMAGE_ENCODER.to_diffusers(key.removeprefix("vision_model."))
    if f".{QKV}." in name:
        return [(name.replace(QKV, f"{part}_proj"), (shape[0] // 3, *shape[1:])) for part in "qkv"]
    ranks = {"embeddings.class_embedding": 1, "embeddings.position_embedding.weight": 2}
    return [(name, shape[-ranks.get(name, len(shape)) :] if shape else shape)]


TRANSFORMER = KeyMap(_transformer())
VAE = KeyMap(_vae())
VAE_2_2 = KeyMap(_vae_2_2())
TEXT_ENCODER = KeyMap(_text_encoder())
