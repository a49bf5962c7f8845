"""What configurations say of a model: in both formats' files, and in the shapes of the tensors."""

from __future__ import annotations

from dataclasses import replace
from math import isqrt
from typing import Any

from fpsgen.errors import ModelError
from fpsgen.printable import printable
from fpsgen.wan.config import FETCH_AGAIN, OURS, WAN_5B, WanConfig
from fpsgen.weights.kinds import Header

# What the files of Wan2.1 say (`layout.text_config_of`, `layout.vae_config_of`).
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "gated-gelu",
}
# transformers' of CLIP's vision transformer ViT-H (Wan2.1 `wan/modules/clip.py`).
_IMAGE_CONFIG: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
VAE_CONFIG: dict[str, Any] = {"base_dim": 96, "z_dim": 16}
# Of Wan2.2's 5B, whose VAE folds 2 x 2 pixels into 12 channels first (Wan2.2 `wan/modules/vae2_2.py`).
_FOLDED = {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16}
VAE_2_2_CONFIG: dict[str, Any] = {
    **_FOLDED,
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "latents_mean": [
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
        0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
        -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ],
    "latents_std": [
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
        0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
        0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ],
}  # fmt: skip


def from_diffusers(config: dict) -> WanConfig:
    """Read `transformer/config.json` of a Diffusers folder; refuse what is no transformer of Wan."""
    name = config.get("_class_name", "WanTransformer3DModel")
    if name != "WanTransformer3DModel":
        raise ModelError(f"its transformer is a {printable(name, 60)}, not a WanTransformer3DModel", hint=OURS)
    fixed = {"patch_size": list(WanConfig.PATCH), "qk_norm": "rms_norm_across_heads", "cross_attn_norm": True}
    for key, value in fixed.items():
        found = config.get(key, value)
        if (list(found) if isinstance(found, (list, tuple)) else found) != value:
            raise ModelError(f"its transformer has {key} = {shown(found)}; Wan's have {value!r}", hint=OURS)

    def count(key: str, default: int | None = None) -> int:
        value = config.get(key, default)
        if key not in config and default is None:
            raise ModelError(f"its transformer/config.json has no {key}", hint=FETCH_AGAIN)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**20:
            told = f"its transformer/config.json says {key} = {shown(value)}, which is not a count"
            raise ModelError(told, hint=FETCH_AGAIN)
        return value

    heads, in_channels = count("num_attention_heads"), count("in_channels")
    dim, images = heads * count("attention_head_dim"), config.get("image_dim") is not None
    if (added := config.get("added_kv_proj_dim")) != (wanted := dim if images else None):
        told = f"its transformer has added_kv_proj_dim = {shown(added)}; with its image_dim Wan has {wanted}"
        raise ModelError(told, hint=OURS)
    return WanConfig(
        dim=dim,
        ffn_dim=count("ffn_dim"),
        num_heads=heads,
        num_layers=count("num_layers"),
        text_dim=count("text_dim"),
        freq_dim=count("freq_dim", 256),
        in_channels=in_channels,
        out_channels=in_channels if config.get("out_channels") is None else count("out_channels"),
        eps=_epsilon(config),
        image_dim=count("image_dim") if images else None,
        image_positions=None if config.get("pos_embed_seq_len") is None else count("pos_embed_seq_len"),
        time_per_token=in_channels == WAN_5B.in_channels,
    )


def with_original(own: WanConfig, config: dict) -> WanConfig:
    """The shapes that a transformer's tensors gave, with what an original checkpoint's config.json adds; ModelError
    where the two disagree.

    That file lacks what Wan2.1's model class does not save (patch size, norms, text_dim).
    """
    check_original_kind(config)
    if (kind := config.get("model_type")) and (kind in _FROM_IMAGE) != (own.condition_channels > 0):
        told = f"its config.json says model_type = {shown(kind)}; its weights are of another kind"
        raise ModelError(told, hint="fetch the config.json that belongs to these weights")
    names = {"dim": "dim", "ffn_dim": "ffn_dim", "num_layers": "num_layers", "in_dim": "in_channels"}
    for theirs, ours in names.items():
        if (told := config.get(theirs, getattr(own, ours))) != getattr(own, ours):
            told = f"its config.json says {theirs} = {shown(told)}; its weights have {getattr(own, ours)}"
            raise ModelError(told, hint="fetch the config.json that belongs to these weights")
    heads = config.get("num_heads", own.num_heads)
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or own.dim % heads:
        told = f"its config.json says num_heads = {shown(heads)}, which does not divide dim = {own.dim}"
        raise ModelError(told, hint="fetch the config.json that belongs to these weights")
    return replace(own, num_heads=heads, eps=_epsilon(config))


def to_diffusers(own: WanConfig) -> dict[str, Any]:
    """What `from_diffusers` reads, as diffusers' WanTransformer3DModel writes it."""
    return {
        "_class_name": "WanTransformer3DModel",
        "added_kv_proj_dim": None if own.image_dim is None else own.dim,
        "attention_head_dim": own.head_dim,
        "cross_attn_norm": True,
        "eps": own.eps,
        "ffn_dim": own.ffn_dim,
        "freq_dim": own.freq_dim,
        "image_dim": own.image_dim,
        "in_channels": own.in_channels,
        "num_attention_heads": own.num_heads,
        "num_layers": own.num_layers,
        "out_channels": own.out_channels,
        "patch_size": list(own.PATCH),
        "pos_embed_seq_len": own.image_positions,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": own.text_dim,
    }


def to_original(own: WanConfig) -> dict[str, Any]:
    """An original checkpoint's config.json, with the fields that Wan2.1's model class saves."""
    return {
        "_class_name": "WanModel",
        "dim": own.dim,
        "eps": own.eps,
        "ffn_dim": own.ffn_dim,
        "freq_dim": own.freq_dim,
        "in_dim": own.in_channels,
        "model_type": _KINDS[own.time_per_token, own.condition_channels > 0, own.image_positions is not None],
        "num_heads": own.num_heads,
        "num_layers": own.num_layers,
        "out_dim": own.out_channels,
        "text_len": 512,
    }


# What an original checkpoint's config.json calls a model: time_per_token, condition_channels, image_positions or not.
_KINDS = {
    (False, False, False): "t2v",
    (True, False, False): "ti2v",
    (False, True, False): "i2v",
    (False, True, True): "flf2v",
}
_FROM_IMAGE = ("i2v", "flf2v")


def check_original_kind(config: dict) -> None:
    """Refuse an original checkpoint's config.json that is of a model for other things than text and images."""
    if (kind := config.get("model_type", "t2v")) not in _KINDS.values():
        raise ModelError(f"it is a {printable(kind, 60)} model", hint=OURS)


def _epsilon(config: dict) -> float:
    eps = config.get("eps", 1e-6)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise ModelError(f"its config.json says eps = {shown(eps)}, which is not a valid value", hint=FETCH_AGAIN)
    return eps


def shown(value: object) -> str:
    """A value of a configuration, as it is written but short."""
    return printable(repr(value), 60)


def shape_of(tensors: dict[str, Header], name: str, rank: int) -> tuple[int, ...]:
    if name not in tensors or len(tensors[name].shape) != rank:
        raise ModelError(f"its weights are not Wan's: there is no {name} of {rank} dimensions", hint=OURS)
    return tensors[name].shape


def depth_of(tensors: dict[str, Header], stem: str) -> int:
    return len({name.removeprefix(stem).split(".")[0] for name in tensors if name.startswith(stem)})


def config_of(tensors: dict[str, Header]) -> WanConfig:
    """Hyperparameters of a transformer, from its tensors' shapes (original names); heads are 128 wide."""
    dim, in_channels = shape_of(tensors, "patch_embedding.weight", 5)[:2]
    patch = WanConfig.PATCH[0] * WanConfig.PATCH[1] * WanConfig.PATCH[2]
    return WanConfig(
        dim=dim,
        ffn_dim=shape_of(tensors, "blocks.0.ffn.0.weight", 2)[0],
        num_heads=max(dim // 128, 1),
        num_layers=depth_of(tensors, "blocks."),
        text_dim=shape_of(tensors, "text_embedding.0.weight", 2)[1],
        freq_dim=shape_of(tensors, "time_embedding.0.weight", 2)[1],
        in_channels=in_channels,
        out_channels=shape_of(tensors, "head.head.weight", 2)[0] // patch,
        image_dim=shape_of(tensors, "img_emb.proj.1.weight", 2)[1] if "img_emb.proj.1.weight" in tensors else None,
        image_positions=shape_of(tensors, "img_emb.emb_pos", 3)[1] if "img_emb.emb_pos" in tensors else None,
        time_per_token=in_channels == WAN_5B.in_channels,
        gated=is_gated(tensors),
    )


def is_gated(tensors: dict[str, Header]) -> bool:
    """Whether a transformer (original names) has FastVideo's gates, of which no configuration speaks."""
    return "blocks.0.self_attn.gate_compress.weight" in tensors


def vae_config_of(tensors: dict[str, Header]) -> dict[str, Any]:
    """diffusers' configuration of Wan2.1's VAE, or of Wan2.2's, but for the widths, which are the tensors'."""
    width, channels = shape_of(tensors, "encoder.conv_in.weight", 5)[:2]
    own = {"base_dim": width, "z_dim": shape_of(tensors, "post_quant_conv.weight", 5)[0]}
    if channels == _FOLDED["in_channels"]:
        return {**VAE_2_2_CONFIG, **own, "decoder_base_dim": shape_of(tensors, "decoder.conv_out.weight", 5)[1]}
    return own


def text_config_of(tensors: dict[str, Header]) -> dict[str, Any]:
    """transformers' configuration of a UMT5 encoder, from its tensors' shapes (transformers' names)."""
    vocab_size, d_model = shape_of(tensors, "shared.weight", 2)
    attention = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = shape_of(tensors, f"{attention}.relative_attention_bias.weight", 2)
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_kv": shape_of(tensors, f"{attention}.q.weight", 2)[0] // heads,
        "d_ff": shape_of(tensors, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 2)[0],
        "num_layers": depth_of(tensors, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }


def image_config_of(tensors: dict[str, Header]) -> dict[str, Any]:
    """transformers' configuration of CLIP's vision transformer, from its tensors' shapes (transformers' names): heads
    are 80 wide in ViT-H, the only one that Wan has."""
    width, _, patch = shape_of(tensors, "embeddings.patch_embedding.weight", 4)[:3]
    positions = shape_of(tensors, "embeddings.position_embedding.weight", 2)[0]
    return _IMAGE_CONFIG | {
        "hidden_size": width,
        "intermediate_size": shape_of(tensors, "encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": depth_of(tensors, "encoder.layers."),
        "num_attention_heads": max(width // 80, 1),
        "image_size": patch * isqrt(max(positions - 1, 0)),
        "patch_size": patch,
    }


def check_image_config(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of an image encoder's config.json that its arithmetic depends on; ModelError where one cannot be."""
    kind = config.get("model_type", "clip_vision_model")
    if kind != "clip_vision_model":
        raise ModelError(f"its image encoder is a {printable(kind, 60)}, not a clip_vision_model", hint=OURS)
    own = {name: config.get(name, usual) for name, usual in _IMAGE_CONFIG.items()}
    for name, value in own.items():
        counts = type(_IMAGE_CONFIG[name]) is int
        if not (type(value) is int and 0 < value <= 2**16 if counts else value == _IMAGE_CONFIG[name]):
            usual = f"Wan's has {_IMAGE_CONFIG[name]!r}"
            raise ModelError(f"its image_encoder/config.json says {name} = {shown(value)}; {usual}", FETCH_AGAIN)
    if own["hidden_size"] % own["num_attention_heads"] or own["patch_size"] > own["image_size"]:
        told = "its image_encoder/config.json describes no vision transformer: check num_attention_heads and patch_size"
        raise ModelError(told, FETCH_AGAIN)
    return own


def image_positions(config: dict[str, Any]) -> int:
    """How many states of one image an encoder writes: of its patches, and one of the whole."""
    return (config["image_size"] // config["patch_size"]) ** 2 + 1 if config else 0


def check_kinds_of_parts(vae: dict[str, Any], text_encoder: dict[str, Any]) -> None:
    """Refuse components of another kind, before any work is done with them."""
    if (name := vae.get("_class_name", "AutoencoderKLWan")) != "AutoencoderKLWan":
        raise ModelError(f"its VAE is a {printable(name, 60)}, not an AutoencoderKLWan", hint=OURS)
    version, fixed = ("2.2", _FOLDED) if vae.get("is_residual") else ("2.1", {"patch_size": None})
    for key, value in fixed.items():
        if (have := vae.get(key)) != value:
            raise ModelError(f"its VAE has {key} = {shown(have)}; Wan{version}'s has {value!r}", hint=OURS)
    channels = VAE_2_2_CONFIG["z_dim"] if vae.get("is_residual") else VAE_CONFIG["z_dim"]
    for key in ("latents_mean", "latents_std"):
        values = vae.get(key, [1.0] * VAE_CONFIG["z_dim"])
        if not (isinstance(values, list) and len(values) == channels and all(map(_is_number, values))):
            raise ModelError(f"its vae/config.json has a {key} that is not {channels} numbers", FETCH_AGAIN)
    if min(vae.get("latents_std", [1.0])) <= 0:
        raise ModelError("its vae/config.json has a latents_std that is not above 0", FETCH_AGAIN)
    if (blocks := vae.get("num_res_blocks", 2)) not in range(1, 17):
        raise ModelError(f"its vae/config.json says num_res_blocks = {shown(blocks)}; Wan's have 2", FETCH_AGAIN)
    eps = text_encoder.get("layer_norm_epsilon", 1e-6)
    if not (_is_number(eps) and 0 < eps < 1):
        raise ModelError(f"its text encoder has layer_norm_epsilon = {shown(eps)}; Wan's has 1e-06", FETCH_AGAIN)
    umt5 = {"model_type": "umt5", "feed_forward_proj": "gated-gelu", "relative_attention_max_distance": 128}
    for key, wanted in umt5.items():
        if (have := text_encoder.get(key, wanted)) != wanted:
            raise ModelError(f"its text encoder has {key} = {shown(have)}; Wan's has {wanted!r}", hint=OURS)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6  # NaN is not, either
